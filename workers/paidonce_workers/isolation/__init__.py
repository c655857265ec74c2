"""Runs a step's body in a separate process, once the step is suspected of killing the process that runs it.

    executor -> child ~> body_process ~> isolated_body

``messages`` defines what the two sides send each other, ``frames`` how it passes the pipe. ``~>`` starts a process.
"""
