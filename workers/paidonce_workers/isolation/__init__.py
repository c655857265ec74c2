"""Running a step apart from all others, once it is suspected of killing the process that it runs in.

    worker -> hosts -> host_process ~> host_program -> hosting -> child ~> isolated_body

A suspect is never claimed by the worker, which may die of another step at any moment: its message goes on to a host,
a process that claims and executes it like a worker and runs no user code itself. ``~>`` begins a process.
"""
