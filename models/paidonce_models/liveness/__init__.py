"""Proof that a process is alive, held by the operating system or the database server and not by one of its threads.

User code can stop every thread of a process: a body that holds the GIL stops the heartbeat too. So a lease that was
not renewed proves little. Three things prove more, and all of them end with the process at once:

- ``processes``: the process itself, for whoever runs on the same host in the same PID namespace;
- ``file_locks``: a lock on a file beside an SQLite store, which the kernel drops;
- ``server_locks``: an advisory lock on a PostgreSQL connection, which the server drops.
"""

from paidonce_models.liveness.file_locks import FileLock, file_lock_is_held, remove_lock_file
from paidonce_models.liveness.processes import process_is_alive, start_of, this_place
from paidonce_models.liveness.server_locks import PooledConnection, ServerLock

__all__ = [
    "FileLock",
    "PooledConnection",
    "ServerLock",
    "file_lock_is_held",
    "process_is_alive",
    "remove_lock_file",
    "start_of",
    "this_place",
]
