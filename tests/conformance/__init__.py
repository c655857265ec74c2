"""CPython's own asyncio tests, and programs recorded and replayed across processes, on the replay loop."""
