"""Running a step apart from all others, once it is suspected of killing the process that it runs in.

suspicion       which steps those are
child           the body's own process, seen from whoever waits for it
isolated_body   the same from inside; begun by ``paidonce_workers.isolated``
"""
