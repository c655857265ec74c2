"""The generated parts of ``docs/costs.md``. ``python -m tests.docs.costs_page`` puts them there."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from paidonce.cli.program import program
from paidonce_models.store.bill_statements import recomputing_statements
from paidonce_models.store.cost_views import VIEWS, view_sql
from tests.cli.reference import DOCS, with_part
from tests.docs.cost_example import CRASHED_RUN, NAMESPACE, Company

ROWS = 100


@dataclass(frozen=True, kw_only=True)
class Question:
    """What somebody asks, the command that answers, the SQL for the same, and a word on the answer."""

    asks: str
    command: tuple[str, ...]
    sql: str
    remark: str


def _view(asks: str, name: str, remark: str, *command: str) -> Question:
    arguments = command or ("costs", "--view", name)
    return Question(asks=asks, command=arguments, sql=view_sql(name, NAMESPACE, limit=ROWS), remark=remark)


QUESTIONS = (
    _view(
        "What did we spend, and on what?",
        "costs_by_agent",
        "The rows add up to the total, to the nano-dollar. One call has no price, so two sums are lower bounds.",
        "costs",
    ),
    Question(
        asks="What did each customer cost us?",
        command=("costs", "--by", "tag:customer"),
        sql="SELECT value, calls, unpriced_calls, cost_nanousd\nFROM costs_by_tag\n"
        f"WHERE namespace = '{NAMESPACE}' AND tag = 'customer'\nORDER BY cost_nanousd DESC",
        remark="Any tag that runs are submitted with: `--tag customer=acme`. The last row is what carries no such tag.",
    ),
    _view(
        "Which model takes the money?",
        "costs_by_model",
        "The row without a model is paid tools. Tokens of a model that nobody has priced are counted all the same.",
        *("costs", "--by", "model"),
    ),
    _view(
        "Did it go up?",
        "costs_by_day",
        "By UTC day, the first one first. `--since 7d` is today and the six days before; `--by day,agent` says who.",
        *("costs", "--by", "day"),
    ),
    _view(
        "How much bought nothing, and why?",
        "costs_by_cause",
        "Everything but `useful` and `open` bought nothing. `failed` here is the searches that had to be tried again.",
        *("costs", "--by", "cause"),
    ),
    _view(
        "What do retries cost, and in which tool?",
        "retry_costs_by_tool",
        "A retry is a call of a second attempt, or one that the client's library sent again by itself.",
    ),
    _view(
        "What does one success cost?",
        "costs_per_successful_run",
        "What failed runs spent is part of the price of the others. The two percentiles are of successful runs alone.",
    ),
    _view(
        "Which runs ran away?",
        "unusual_runs",
        "Runs that took more than three times their agent's median of steps or money, those under way included.",
    ),
    Question(
        asks="What exactly did this run pay for?",
        command=("bill", CRASHED_RUN),
        sql=";\n\n".join(recomputing_statements(CRASHED_RUN)),
        remark="The request ids are those on the provider's invoice. `paidonce bill RUN --sql` prints this SQL.",
    ),
    _view(
        "What did crashes not make us pay again?",
        "avoided_costs",
        "Finished steps that starting over would have repeated, at what they had cost. Never a part of the spend.",
    ),
    _view(
        "What may be on the invoice that we did not see?",
        "possibly_billed",
        "A worker that vanishes may leave a request that the provider answers to nobody. The estimate is what the step "
        "costs on average less what was recorded; a step without history says unknown.",
    ),
    _view(
        "How far can we trust these figures?",
        "data_quality",
        "Estimated: counted by the step's own code, `record_usage(…, estimated=True)`. Missing: requests that say "
        "nothing: streams without usage or cut short, and those that failed. Unpriced: used and without a price, which "
        "makes sums lower bounds.",
    ),
)


def answer(url: str, home: Path, command: tuple[str, ...]) -> str:
    """What the command prints for the example."""
    environment = {"PAIDONCE_DATABASE_URL": url, "PAIDONCE_HOME": str(home), "PAIDONCE_NAMESPACE": NAMESPACE}
    result = CliRunner().invoke(program, list(command), env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.output.rstrip().splitlines())


def generated(url: str, home: Path) -> dict[str, str]:
    """Each part by its mark: the questions with their answers, and the views with their columns."""
    questions = "\n\n".join(
        f"### {number}. {each.asks}\n\n```console\n$ paidonce {' '.join(each.command)}\n"
        f"{answer(url, home, each.command)}\n```\n\n{each.remark}\n\n```sql\n{each.sql};\n```"
        for number, each in enumerate(QUESTIONS, start=1)
    )
    views = "\n\n".join(
        f"**`{name}`**: {view.answers}.\n\n| column | what it is |\n|---|---|\n"
        + "\n".join(f"| `{column}` | {meaning} |" for column, meaning in view.columns.items())
        for name, view in VIEWS.items()
    )
    return {"questions": questions, "views": views}


def main() -> None:
    """Bring the page up to date."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/example.sqlite3"
        Company(url).write()
        page = DOCS / "costs.md"
        text = page.read_text(encoding="utf-8")
        for mark, part in generated(url, Path(folder)).items():
            text = with_part(text, mark, part)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
