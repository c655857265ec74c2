"""Takes README.md apart: its examples by the file name in the marker above each."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
_EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


def example(name: str) -> str:
    """The example of that file name."""
    examples: dict[str, str] = dict(_EXAMPLE.findall(README.read_text(encoding="utf-8")))
    return examples[name]
