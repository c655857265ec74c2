"""Every statement that reads or writes the store, one module per act in a run's life.

Functions take a connection inside a transaction that the caller has opened; each
write states its guard. Lock order everywhere: runs by depth, steps, attempts. What
locks many rows at once (a committer's batch, the heartbeat, the sweeper) skips those
that somebody holds.
"""
