"""Where tasks run: the thread pool, its resizing and draining, and the signals that stop a worker."""
