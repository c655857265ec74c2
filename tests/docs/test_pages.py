"""The documentation names what exists: links, settings, commands, options, public names, states, moves, markers."""

import inspect
import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import pytest

import paidonce
from paidonce.agents import _declare_agent
from paidonce.cli.program import COMMANDS
from paidonce.declarations.decorators import _declare_step
from paidonce.settings import Settings
from paidonce_models.states import ATTEMPT_MOVES, RUN_MOVES, STEP_MOVES, AttemptOutcome, RunState, StepState
from tests.docs.readme_file import ROOT

DECISIONS = ROOT / "docs" / "decisions"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def pages() -> Iterator[tuple[str, str]]:
    """Each page's name and text."""
    for path in PAGES:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """What a link may name behind # in a page."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    named = set(re.findall(r'^<a id="([\w-]+)"></a>$', text, re.MULTILINE))
    return named | {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            missing.append(target)
    assert missing == []


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {
        (index.parent / target.partition("#")[0]).resolve()
        for target in re.findall(r"\]\(([^)\s]+)\)", index.read_text(encoding="utf-8"))
    }
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page.parent != DECISIONS and page != index}
    assert pages - linked == set()


def test_contributing_lists_every_marker_and_every_variable_of_the_tests() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    markers = [line.partition(":")[0] for line in project["tool"]["pytest"]["ini_options"]["markers"]]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    variables = set(re.findall(r'"(TEST_[A-Z_]+)"', code))
    assert [name for name in (*markers, *sorted(variables)) if f"`{name}`" not in text] == []


def test_paths_that_pages_name_exist() -> None:
    folders = "models|orchestrator|workers|tests|scripts|benchmarks|examples"
    named = {(page, path) for page, text in pages() for path in re.findall(rf"`((?:{folders})/[\w/.-]+)`", text)}
    assert {(page, path) for page, path in named if not (ROOT / path).exists()} == set()


def test_settings_that_pages_name_exist() -> None:
    known = {f"PAIDONCE_{name.upper()}" for name in Settings.model_fields}
    named = {(page, name) for page, text in pages() for name in re.findall(r"\bPAIDONCE_[A-Z_]*[A-Z]\b", text)}
    assert {(page, name) for page, name in named if name not in known} == set()


def test_commands_that_pages_name_exist() -> None:
    named = {(page, name) for page, text in pages() for name in re.findall(r"(?:`|\$ )paidonce ([a-z]+)", text)}
    assert {(page, name) for page, name in named if name not in COMMANDS} == set()


def test_the_page_on_agents_lists_every_option_and_every_public_name() -> None:
    text = (ROOT / "docs" / "reference" / "agents.md").read_text(encoding="utf-8")
    options = set(re.findall(r"^\| `(\w+)=` ", text, re.MULTILINE))
    assert options == _keywords(_declare_step)
    (agents,) = re.findall(r"^`@agent` takes (.*)$", text, re.MULTILINE)
    assert set(re.findall(r"`(\w+)=`", agents)) == _keywords(_declare_agent)
    public = text.split("## Public names")[1]
    assert set(re.findall(r"`(\w+)`", public)) - {"paidonce", "code", "PaidonceError"} == set(paidonce.__all__) - {
        "PaidonceError"
    }


def _keywords(declare: object) -> set[str]:
    parameters = inspect.signature(declare).parameters.values()  # type: ignore[arg-type]  # a function
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("begin", "states"),
    [("Of a run: ", RunState), ("Of a step: ", StepState), ("Outcomes of an attempt: ", AttemptOutcome)],
)
def test_the_glossary_lists_every_state(begin: str, states: type[StrEnum]) -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith(begin)]
    assert re.findall(r"`(\w+)`", line.partition(". ")[0]) == [state.value for state in states]


def test_the_glossary_is_in_order() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^\| (\w[\w -]*) \|", text.partition("## States")[0], re.MULTILINE)[1:]
    assert words == sorted(words)
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("number", "moves"),
    [(0, RUN_MOVES), (1, STEP_MOVES), (2, ATTEMPT_MOVES)],
    ids=["run", "step", "attempt"],
)
def test_the_state_diagrams_show_exactly_the_legal_moves(
    number: int, moves: Mapping[StrEnum | None, frozenset[StrEnum]]
) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    diagram = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, re.DOTALL)[number]
    assert drawn_moves(diagram) == {
        ("under_way" if source is None else source.value, target.value)
        for source, targets in moves.items()
        for target in targets
    }


def drawn_moves(diagram: str) -> set[tuple[str, str]]:
    """The moves of a diagram. Inside a group every move is drawn; an arrow at a group means each of its members."""
    groups = {name: body.split() for name, body in re.findall(r"state (\w+) \{(.*?)\}", diagram, re.DOTALL)}
    moves = {(a, b) for members in groups.values() for a in members for b in members if a != b}
    for source, target in re.findall(r"^\s*(\w+) --> (\w+)", diagram, re.MULTILINE):
        moves |= {(a, b) for a in groups.get(source, [source]) for b in groups.get(target, [target])}
    return moves


def test_every_decision_has_its_four_parts_and_stands_in_the_list() -> None:
    listed = (DECISIONS / "README.md").read_text(encoding="utf-8")
    pages = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")
    for path in pages:
        text = path.read_text(encoding="utf-8")
        title = text.splitlines()[0].removeprefix("# ")
        assert re.match(r"\d{4}-[a-z0-9-]+\.md", path.name), path.name
        assert re.findall(r"^(Status: \w+|## \w+)", text, re.MULTILINE)[1:] == [
            "## Context",
            "## Decision",
            "## Consequences",
        ], path.name
        assert "\nStatus: " in text, path.name
        assert f"[{path.name[:4]} {title}]({path.name})" in listed, path.name
    assert [path.name[:4] for path in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
