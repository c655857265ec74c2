"""DBOS on PostgreSQL: workflows taken from its queue by worker processes, each step checkpointed."""
