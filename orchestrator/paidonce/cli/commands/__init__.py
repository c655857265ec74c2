"""The commands of ``paidonce``, one module each."""
