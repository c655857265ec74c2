"""Golden histories: runs recorded once, replayed for ever.

A history is a run's log and what its agent asked for at each event. The code that replays must understand every log
that was ever written, on each Python: a test that fails here tells of runs in users' stores that would be blocked.

To add one: write an agent in ``agents.py``, list it in ``record.py`` and run ``python -m tests.golden.record NAME`` on
the oldest Python that is supported. Never record one again to make a test pass: mend the replay, or keep the old file
and add another beside it.
"""
