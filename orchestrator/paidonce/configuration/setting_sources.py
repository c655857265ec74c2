"""Where settings are written down: environment, ``.env`` and ``pyproject.toml``.

Owns finding the ``[tool.paidonce]`` table, naming the source of a value, and the warning for unknown names. Knows no
setting's meaning or limits; ``settings`` does.
"""

from __future__ import annotations

import difflib
import logging
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from paidonce_models.errors import ConfigurationError

ENVIRONMENT_PREFIX = "PAIDONCE_"
LARGEST_FILE_BYTES = 4 * 1024 * 1024
"""Size limit of ``pyproject.toml`` and ``.env``. Not a setting, because it would have to be read from them."""
_TABLE_HEADER = "[tool.paidonce"
# Read by the project's own tests, not by the product.
_FOREIGN_PREFIXES = ("PAIDONCE_TEST_", "PAIDONCE_BENCH_", "PAIDONCE_DEMO_")

logger = logging.getLogger("paidonce.settings")


@dataclass(frozen=True, kw_only=True)
class ProjectFile:
    """A ``pyproject.toml`` and its ``[tool.paidonce]`` table; an absent file has an empty table."""

    path: Path | None = None
    table: Mapping[str, object] = field(default_factory=dict)


def find_project_file(folder: Path | None = None) -> ProjectFile:
    """The nearest ``pyproject.toml`` with a ``[tool.paidonce]`` table in ``folder`` (default: current) or above.

    A file without the table is skipped, so that a package inside a larger project is still configured by that.
    Relative ``home``, ``policies`` and ``sqlite:///`` paths are relative to the file that contains them.
    """
    start = (folder if folder is not None else Path.cwd()).absolute()
    for candidate in (start, *start.parents):
        path = candidate / "pyproject.toml"
        try:
            text = _read_bounded(path)
        except (OSError, UnicodeDecodeError):
            continue
        if _TABLE_HEADER not in text:
            continue
        try:
            table = tomllib.loads(text).get("tool", {}).get("paidonce")
        except ValueError as error:  # TOML's own among them, and a number with more digits than Python reads
            raise ConfigurationError(f"{path} is not valid TOML: {error}; correct it there") from None
        except RecursionError:
            raise ConfigurationError(f"{path} nests lists too deep; correct it there") from None
        if isinstance(table, dict):
            normal = {key.replace("-", "_").lower(): value for key, value in table.items()}
            return ProjectFile(path=path, table=_anchored(normal, candidate))
    return ProjectFile()


class ProjectTable(PydanticBaseSettingsSource):
    """The ``[tool.paidonce]`` table as a source of pydantic-settings."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self._table = find_project_file().table

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[object, str, bool]:
        """The table's value for one field, or ``None`` if it has none."""
        return self._table.get(field_name), field_name, False

    def __call__(self) -> dict[str, object]:
        return {name: self._table[name] for name in self.settings_cls.model_fields if name in self._table}


def place_of(name: str, given: Mapping[str, object]) -> tuple[str, object]:
    """Where setting ``name`` got its value, in words, and the value as written."""
    if name in given:
        return "the call", given[name]
    for where, values in (("the environment", _environment()), (_dotenv_place(), _dotenv())):
        if values.get(name):
            return where, values[name]
    project = find_project_file()
    if name in project.table:
        return f"[tool.paidonce] of {project.path}", project.table[name]
    return "its default", None


def warn_of_unknown_names(known: Iterable[str]) -> None:
    """Log one warning that lists every unknown name, each with the nearest known one."""
    names = tuple(known)
    project = find_project_file()
    places = (("the environment", _environment()), (_dotenv_place(), _dotenv()), (str(project.path), project.table))
    found = []
    for place, values in places:
        for name in sorted(values.keys() - set(names)):
            spelled = f"{ENVIRONMENT_PREFIX}{name.upper()}"
            if spelled.startswith(_FOREIGN_PREFIXES):
                continue
            near = difflib.get_close_matches(name, names, n=1)
            meant = f", did you mean {ENVIRONMENT_PREFIX}{near[0].upper()}?" if near else ""
            found.append(f"{spelled} in {place}{meant}")
    if found:
        logger.warning("unknown settings are ignored: %s", "; ".join(found), extra={"event": "unknown_settings"})


def refuse_large_dotenv() -> None:
    """Raise ``ConfigurationError`` for a ``.env`` of implausible size, before it is parsed."""
    path = Path(".env").absolute()
    if path.is_file():
        _refuse_large(path, path.stat().st_size)


def _read_bounded(path: Path) -> str:
    """The text of a file of plausible size. Raises ``ConfigurationError`` for a larger one."""
    with path.open("rb") as opened:
        data = opened.read(LARGEST_FILE_BYTES + 1)
    _refuse_large(path, len(data))
    return data.decode("utf-8")


def _refuse_large(path: Path, size: int) -> None:
    if size > LARGEST_FILE_BYTES:
        raise ConfigurationError(
            f"{path} has more than {LARGEST_FILE_BYTES:,} bytes; settings are read from a shorter file, correct it"
        )


def _environment() -> dict[str, object]:
    return _prefixed(os.environ)


def _dotenv() -> dict[str, object]:
    path = Path(".env")
    return _prefixed(dotenv_values(path)) if path.is_file() else {}


def _dotenv_place() -> str:
    return str(Path(".env").absolute())


def _prefixed(values: Mapping[str, str | None]) -> dict[str, object]:
    """The values with our prefix, by setting name; case is ignored, as in pydantic-settings."""
    start = len(ENVIRONMENT_PREFIX)
    return {key[start:].lower(): text for key, text in values.items() if key.upper().startswith(ENVIRONMENT_PREFIX)}


def _anchored(table: dict[str, object], folder: Path) -> dict[str, object]:
    for name in ("home", "policies"):
        path = table.get(name)
        if isinstance(path, str) and not path.startswith("~"):
            table[name] = str(folder / path)
    database = table.get("database_url")
    if (
        isinstance(database, str)
        and database.startswith("sqlite:///")
        and not database.startswith(("sqlite:////", "sqlite:///:memory:", "sqlite:///~"))
    ):
        table["database_url"] = f"sqlite:///{folder / database.removeprefix('sqlite:///')}"
    return table
