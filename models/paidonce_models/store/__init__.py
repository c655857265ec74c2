"""Every statement that reads or writes the store, one module for each act of a run's life.

Functions take a connection inside a transaction that the caller opened; each
write names its guard. Lock order everywhere: runs by depth, steps, attempts.
"""
