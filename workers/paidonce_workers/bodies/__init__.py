"""Running a step's body: on threads or the event loop, with timeouts and interruption, forked or not."""
