"""``paidonce submit AGENT --from FILE``: many runs, in chunks, with one line of JSON for each if asked for."""

from __future__ import annotations

from dataclasses import dataclass

from paidonce.cli.output import print_json_line, say, tell
from paidonce.cli.submission_lines import Defaults, Line, opened, read_lines
from paidonce.client import Client
from paidonce.runs.many_submissions import CHUNK_BYTES, CHUNK_SUBMISSIONS
from paidonce_models.errors import InvalidInput, PaidonceError


@dataclass
class Progress:
    """What has been submitted so far."""

    as_json: bool
    runs: int = 0
    created: int = 0

    def note(self, line: Line, run_id: str, *, created: bool | None) -> None:
        """Count a run, and print it as JSON if asked for."""
        self.runs += 1
        self.created += created is not False
        if self.as_json:
            print_json_line({"line": line.number, "run_id": run_id, "created": created})

    def summary(self) -> str:
        """For people."""
        known = self.runs - self.created
        before = f", {known:,} of them known by their keys" if known else ""
        return f"{self.runs:,} run{'' if self.runs == 1 else 's'} submitted{before}."


def submit_from(client: Client, agent: str, name: str, defaults: Defaults, *, as_json: bool) -> None:
    """Submit every line of a file. Stops at the first that is refused: the error names it and what is submitted."""
    progress = Progress(as_json)
    shown_name = "standard input" if name == "-" else name
    lines: list[Line] = []
    waiting_bytes = 0
    with opened(name) as file:
        found = read_lines(file, shown_name, defaults, max_payload_bytes=client.settings.max_payload_bytes)
        while True:
            try:
                line = next(found, None)
            except InvalidInput as error:
                _submit(client, agent, shown_name, lines, progress)
                raise _stopped(error, error.message, progress, error.details.get("line")) from None
            if line is not None:
                lines.append(line)
                waiting_bytes += line.bytes
            if line is None or len(lines) == CHUNK_SUBMISSIONS or waiting_bytes > CHUNK_BYTES:
                _submit(client, agent, shown_name, lines, progress)
                lines, waiting_bytes = [], 0
            if line is None:
                break
    (say if as_json else tell)(progress.summary())


def _submit(client: Client, agent: str, name: str, lines: list[Line], progress: Progress) -> None:
    try:
        handles = client.submit_many(agent, [line.submission for line in lines])
    except PaidonceError as error:
        index, run_ids = error.details.get("index"), error.details.get("run_ids")
        if not isinstance(index, int) or not isinstance(run_ids, list):
            raise
        for line, run_id in zip(lines, run_ids, strict=False):
            if run_id is not None:
                progress.note(line, run_id, created=None)
        told = error.__cause__.message if isinstance(error.__cause__, PaidonceError) else error.message
        number = lines[index].number
        message = f"{name} line {number}: {told}"
        last = lines[len(run_ids) - 1].number if run_ids else 0
        raise _stopped(error, message, progress, number, last) from None
    for line, handle in zip(lines, handles, strict=True):
        progress.note(line, handle.id, created=handle.created)


def _stopped(error: PaidonceError, message: str, progress: Progress, number: object, last: int = 0) -> PaidonceError:
    """The same error with what is submitted: everything before the line, and after a conflict the rest of its chunk."""
    up_to = f"up to line {last}" if isinstance(number, int) and last > number else "before it"
    again = "correct it and submit the file again" if isinstance(error, InvalidInput) else "submit the file again"
    return type(error)(
        f"{message}. {progress.runs:,} run(s) {up_to} are submitted; {again}: lines with a key are not submitted twice",
        line=number,
        submitted=progress.runs,
    )
