"""The processes that execute suspects, seen from their worker and from inside.

    worker -> hosts -> host_process ~> startup.host_program -> hosting -> executor -> isolation.child ~> isolated_body

The worker never claims a suspect, because it may die of another step at any moment. It forwards the message to a host,
a process that claims and executes like a worker and runs no user code itself. ``~>`` starts a process.
"""
