"""The command line: ``paidonce``. What it prints for machines is in ``documents``, its exit codes in ``exit_codes``."""

from paidonce.cli.program import main

__all__ = ["main"]
