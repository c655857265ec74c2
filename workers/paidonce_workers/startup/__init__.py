"""Starting a worker: the Celery app, the options, the process and its parts."""
