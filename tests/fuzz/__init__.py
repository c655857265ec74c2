"""Generated junk against real workers: ``python -m tests.fuzz --help``."""
