"""The policy file, the code and the commands of docs/reference/policies.md, as they stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from paidonce.policies.file.parsing import parse_policies
from paidonce.policies.keys import FIELDS
from paidonce.policies.matchers import parse_matcher
from paidonce.policies.precedence import ASKED_ATTEMPTS
from tests.cli.conftest import Project
from tests.docs.readme_file import ROOT

PAGE = (ROOT / "docs" / "reference" / "policies.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Project]:
    """A folder with the page's examples; the commands need no store and no broker."""
    for name, text in EXAMPLES.items():
        (tmp_path / name).write_text(text)
    yield Project(tmp_path)


def test_the_example_sets_every_key() -> None:
    sources = parse_policies(EXAMPLES["paidonce.yaml"], "paidonce.yaml").resolve(name="crm_find", kind="tool").sources
    assert {*FIELDS, "policy", "circuit"} <= sources.keys()
    assert "default" not in sources.values()


@pytest.mark.timeout(120)
def test_the_commands_take_the_examples(shop: Project) -> None:
    (commands,) = re.findall(r"```console\n(\$ paidonce policies.*?)```", PAGE, re.DOTALL)
    outputs = []
    for line in commands.splitlines():
        done = shop.paidonce(*line.split()[2:])
        assert done.code == 0, (line, done.err)
        outputs.append(done.out)
    assert "provider:openai" in outputs[0]
    assert "paidonce.yaml:4 policies.search" in outputs[1]


def test_the_page_says_what_the_code_does() -> None:
    assert f"there are {ASKED_ATTEMPTS} attempts" in PAGE
    matchers = re.findall(r"^\| (`\S+`(?:, `\S+`)*) \| ", PAGE.partition("## Keys")[0], re.MULTILINE)
    for matcher in re.findall(r"`(\S+?)`", " ".join(matchers)):
        assert parse_matcher(matcher) == matcher
