"""``python -m paidonce.cli`` is the program ``paidonce``."""

from paidonce.cli.program import main

if __name__ == "__main__":
    main()
