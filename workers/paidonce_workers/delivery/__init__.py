"""From a message to a task: checking it, delivering it, and what Celery shows of it."""
