"""Takes the README and the guide to submitting apart: their examples by the file name in the marker above each."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "docs" / "how-to" / "submit-runs.md")
_EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


def example(name: str) -> str:
    """The example of that file name."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    examples: dict[str, str] = dict(_EXAMPLE.findall(text))
    return examples[name]
