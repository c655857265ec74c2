"""What people write of prices, as ``PriceRow`` values: on the command line, in a JSON file, in a CSV file.

Owns names of columns and how amounts and dates are written; never touches the
store. Amounts are US dollars per million tokens, exact: a JSON number is read
by its digits. Every error names the place, what was found and what to write.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Final

from paidonce_models.errors import InvalidInput
from paidonce_models.money import NANOUSD_PER_USD, exact_amount
from paidonce_models.payloads.json_values import MAX_DEPTH, nests_deeper
from paidonce_models.pricing import PriceRow
from paidonce_models.pricing.own_prices import PRICE_NAMES

AMOUNT_COLUMNS: Final = tuple(f"{name}_usd_per_mtok" for name in PRICE_NAMES)
COLUMNS: Final = ("provider", "model", "valid_from", "valid_until", *AMOUNT_COLUMNS, "note")
"""What a file of prices may hold; ``model``, ``valid_from`` and ``input_usd_per_mtok`` it must."""
PRINTED_ONLY: Final = ("id", "source", "created_at", "in_force")
"""What ``paidonce prices list --json`` prints besides; passed over, so that its output can be imported elsewhere."""

MOST_ROWS: Final = 10_000
"""Of one import, which is one transaction. The whole price list of genai-prices has a tenth."""

Amount = str | int | Decimal


def parse_name(text: str) -> tuple[str | None, str]:
    """``PROVIDER/MODEL``, parted at the first slash; ``None`` for the provider ``*``. Raises ``InvalidInput``."""
    provider, separator, model = text.partition("/")
    if not separator or not provider.strip() or not model.strip():
        raise InvalidInput(
            f"{text!r}: expected PROVIDER/MODEL, as in openai/gpt-4o, 'vllm/llama-*', or '*/my-model' for any provider"
        )
    return (None if provider.strip() == "*" else provider), model


def parse_amount(value: Amount, what: str) -> int:
    """US dollars per million tokens as integer nano-dollars. Raises ``InvalidInput`` naming ``what``."""
    exact = exact_amount(value, what)
    if exact < 0:
        raise InvalidInput(f"{what} ({value}) cannot be below 0; leave it out if there is no such price")
    nanousd = exact * NANOUSD_PER_USD
    if nanousd.denominator != 1:
        raise InvalidInput(f"{what} ({value}) is finer than a nano-dollar for a million tokens; give 9 decimal places")
    return int(nanousd)


def parse_moment(text: str, what: str) -> datetime:
    """An ISO 8601 instant with its time zone, or a date, which begins at midnight UTC. Raises ``InvalidInput``."""
    try:
        return datetime.combine(date.fromisoformat(text.strip()), time(), UTC)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InvalidInput(
            f"{what}: {text!r} is no date; write 2026-12-01 (midnight UTC) or 2026-12-01T09:30:00+01:00"
        ) from None
    if moment.tzinfo is None:
        raise InvalidInput(f"{what}: {text!r} has no time zone; add one, as in {text.strip()}Z")
    return moment.astimezone(UTC)


def parse_price_file(data: bytes, where: str) -> list[PriceRow]:
    """The rows of a file: a JSON list of objects, what ``prices list --json`` prints, or CSV with a header line.

    Raises ``InvalidInput`` for the first row that is wrong, by its number; rows are counted without the header.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    records = _json_records(text, where) if text.lstrip()[:1] in ("[", "{") else _csv_records(text, where)
    if not records:
        raise InvalidInput(f"{where}: holds no prices; the columns are {', '.join(COLUMNS)}")
    if len(records) > MOST_ROWS:
        raise InvalidInput(
            f"{where}: holds {len(records):,} prices, at most {MOST_ROWS:,} are added at a time; import it in parts"
        )
    return [_row_of(record, f"{where}, row {number}") for number, record in enumerate(records, 1)]


def _json_records(text: str, where: str) -> list[Mapping[str, object]]:
    try:
        document = json.loads(text, parse_float=Decimal)
        if nests_deeper(document, MAX_DEPTH):
            raise RecursionError
    except ValueError as error:
        raise InvalidInput(f"{where}: is not JSON: {error}") from None
    except RecursionError:
        raise InvalidInput(f"{where}: is nested without an end; expected a list of objects") from None
    records = document.get("prices") if isinstance(document, dict) else document
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InvalidInput(f'{where}: expected a list of objects, or {{"prices": [...]}}')
    return records


def _csv_records(text: str, where: str) -> list[Mapping[str, object]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    try:
        records = [{str(name).strip(): value for name, value in record.items()} for record in reader]
    except csv.Error as error:
        raise InvalidInput(f"{where}, line {reader.line_num}: is not CSV: {error}") from None
    for number, record in enumerate(records, 1):
        if "" in record:
            raise InvalidInput(f"{where}, row {number}: has more fields than the header line names")
    return [{name: value for name, value in record.items() if value not in (None, "")} for record in records]


def _row_of(record: Mapping[str, object], where: str) -> PriceRow:
    unknown = sorted(set(record) - set(COLUMNS) - set(PRINTED_ONLY))
    if unknown:
        raise InvalidInput(f"{where}: unknown column {', '.join(unknown):.200}; the columns are {', '.join(COLUMNS)}")
    missing = [name for name in ("model", "valid_from", "input_usd_per_mtok") if record.get(name) is None]
    if missing:
        raise InvalidInput(f"{where}: {', '.join(missing)} is missing")
    texts: dict[str, str | None] = {}
    for name in ("provider", "model", "valid_from", "valid_until", "note"):
        value = record.get(name)
        if value is not None and not isinstance(value, str):
            raise InvalidInput(f"{where}: {name} must be a text, found {value!r:.80}")
        texts[name] = value
    amounts: dict[str, int | None] = {}
    for name in AMOUNT_COLUMNS:
        amount = record.get(name)
        if amount is not None and (isinstance(amount, bool) or not isinstance(amount, str | int | Decimal)):
            raise InvalidInput(f"{where}: {name} must be a number or a decimal text, found {amount!r:.80}")
        amounts[name] = None if amount is None else parse_amount(amount, f"{where}: {name}")
    until = texts["valid_until"]
    try:
        return PriceRow(
            provider=texts["provider"],
            model=texts["model"] or "",
            valid_from=parse_moment(texts["valid_from"] or "", f"{where}: valid_from"),
            valid_until=None if until is None else parse_moment(until, f"{where}: valid_until"),
            input_nanousd_per_mtok=amounts["input_usd_per_mtok"] or 0,
            cache_read_nanousd_per_mtok=amounts["cache_read_usd_per_mtok"],
            cache_write_nanousd_per_mtok=amounts["cache_write_usd_per_mtok"],
            output_nanousd_per_mtok=amounts["output_usd_per_mtok"],
            note=texts["note"] or "",
        )
    except InvalidInput as error:
        raise error if error.message.startswith(where) else InvalidInput(f"{where}: {error.message}") from None
