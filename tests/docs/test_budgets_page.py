"""The examples and commands of docs/how-to/set-budgets.md, run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Project, empty_store, new_project, project  # noqa: F401  the fixtures
from tests.docs.readme_file import ROOT

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "how-to" / "set-budgets.md").read_text(encoding="utf-8")


@pytest.mark.timeout(120)
def test_the_page_works_as_it_stands(project: Project) -> None:  # noqa: F811  as above
    examples = dict(re.findall(r"<!-- example: (\S+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
    assert examples.keys() == {"limited.py", "budgeting.py"}
    for name, text in examples.items():
        (project.folder / name).write_text(text)
    ran = project.paidonce("run", "limited.py:answer", "--input", '{"question": "why"}', "--key", "k", "--json")
    assert (ran.code, ran.document["result"]) == (0, "WHY"), ran.err
    (commands,) = re.findall(r"```console\n(\$ paidonce budget.*?)```", PAGE, re.DOTALL)
    for line in commands.splitlines():
        words = line.partition("#")[0].replace("01a20ae3-…", ran.document["run_id"]).split()[2:]
        done = project.paidonce(*words)
        assert done.code == 0, (line, done.err)
    printed = subprocess.run(
        [sys.executable, "budgeting.py"],
        cwd=Path(project.folder),
        env=project.with_settings({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert printed.returncode == 0, printed.stderr
    assert re.search(r"^agent=answer per=day usd \d+ 0 \d+ 0$", printed.stdout, re.MULTILINE), printed.stdout
    assert re.search(r"^agent=answer per=run steps 3 0 None 0$", printed.stdout, re.MULTILINE), printed.stdout
