"""The generated parts of the pages on costs. ``python -m tests.docs.costs_page`` puts them there."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from paidonce.cli.program import program
from paidonce_models.store.ledger.bill_statements import recomputing_statements
from paidonce_models.store.ledger.cost_views import VIEWS, view_sql
from tests.cli.reference import DOCS, with_part
from tests.docs.cost_example import CRASHED_RUN, NAMESPACE, Company

ROWS = 100


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, the command that answers it, the same in SQL, and a remark on the answer."""

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
        remark="Works for any tag of your runs: `--tag customer=acme`. The last row is runs without this tag.",
    ),
    _view(
        "Which model takes the money?",
        "costs_by_model",
        "The row without a model is paid tools. The tokens of a model without a price are counted too.",
        *("costs", "--by", "model"),
    ),
    _view(
        "Did it go up?",
        "costs_by_day",
        "By UTC day, oldest first. `--since 7d` is today and the six days before; `--by day,agent` adds the agent.",
        *("costs", "--by", "day"),
    ),
    _view(
        "How much bought nothing, and why?",
        "costs_by_cause",
        "Everything except `useful` and `open` bought nothing. `failed` here is the searches that were retried.",
        *("costs", "--by", "cause"),
    ),
    _view(
        "What do retries cost, and in which tool?",
        "retry_costs_by_tool",
        "A retry is a call of a later attempt, or one that the client's library repeated on its own.",
    ),
    _view(
        "What does one success cost?",
        "costs_per_successful_run",
        "The spend of failed runs is part of the price of the others. The percentiles cover only successful runs.",
    ),
    _view(
        "Which runs ran away?",
        "unusual_runs",
        "Runs with more than three times their agent's median of steps or money, including runs under way.",
    ),
    Question(
        asks="What exactly did this run pay for?",
        command=("bill", CRASHED_RUN),
        sql=";\n\n".join(recomputing_statements(CRASHED_RUN)),
        remark="The request ids are those on the provider's invoice. `paidonce bill RUN --sql` prints this SQL.",
    ),
    _view(
        "What did recovery save us after crashes?",
        "avoided_costs",
        "Finished steps that starting over would have repeated, at their recorded cost. Never a part of the spend.",
    ),
    _view(
        "What may be on the invoice that we did not see?",
        "possibly_billed",
        "A worker that vanishes may leave a request whose response nobody receives. The estimate is the step's average "
        "cost minus what was recorded; for a step with no history it is unknown.",
    ),
    _view(
        "How far can we trust these figures?",
        "data_quality",
        "Estimated: counted by the step's own code, `record_usage(…, estimated=True)`. Missing: requests that report "
        "no usage: streams without usage, cut streams, and failed requests. Unpriced: used but without a price, which "
        "makes sums lower bounds.",
    ),
)


def answer(url: str, home: Path, command: tuple[str, ...]) -> str:
    """What the command prints for the example."""
    environment = {"PAIDONCE_DATABASE_URL": url, "PAIDONCE_HOME": str(home), "PAIDONCE_NAMESPACE": NAMESPACE}
    result = CliRunner().invoke(program, list(command), env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.output.rstrip().splitlines())


def generated(url: str, home: Path) -> dict[tuple[str, str], str]:
    """Each part by its page and mark: the questions with their answers, and the views with their columns."""
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
    return {("how-to/answer-cost-questions.md", "questions"): questions, ("reference/costs.md", "views"): views}


def main() -> None:
    """Bring the pages up to date."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/example.sqlite3"
        Company(url).write()
        for (page, mark), part in generated(url, Path(folder)).items():
            path = DOCS / page
            path.write_text(with_part(path.read_text(encoding="utf-8"), mark, part), encoding="utf-8")


if __name__ == "__main__":
    main()
