"""A plain Celery chain: each task enqueues the next. No store, no history, no durability: the floor of the cost."""
