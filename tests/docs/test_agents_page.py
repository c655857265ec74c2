"""The examples of the guides to writing and testing agents, run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.readme_file import ROOT

PAGES = [ROOT / "docs" / "how-to" / name for name in ("write-agents.md", "test-agents.md")]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_examples_pass_as_a_users_own_tests(tmp_path: Path) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    examples = dict(re.findall(r"<!-- example: (\S+) -->\n```python\n(.*?)```", text, re.DOTALL))
    assert examples.keys() == {"shop.py", "test_shop.py"}
    for name, text in examples.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--rootdir", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
