"""The fuzz as a command: ``python -m tests.fuzz --messages 10000 --broker redis://127.0.0.1:6379/9``."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.engines import Engines
from tests.fuzz.play import play


def main() -> int:
    """Print the figures; the exit code is 1 where something of the promise does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--broker", help="a URL; its queues must be nobody else's  [default: an embedded Valkey]")
    parser.add_argument("--database", help="a URL  [default: a new SQLite file]")
    parser.add_argument("--pool", choices=("threads", "prefork"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=None, help="to play the same again")
    parser.add_argument("--keep", type=Path, help="a folder for the logs")
    given = parser.parse_args()
    seed = random.randrange(2**32) if given.seed is None else given.seed
    with tempfile.TemporaryDirectory() as temporary:
        figures = play(
            Engines(name="fuzz", database_url=given.database, broker_url=given.broker),
            given.keep or Path(temporary),
            messages=given.messages,
            seed=seed,
            pool=given.pool,
            workers=given.workers,
        )
    for name, value in vars(figures).items():
        print(f"{name.replace('_', ' ')}: {value}")
    complaints = figures.complaints()
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
