"""For a team's own ``env.py``: what `alembic revision --autogenerate` must ignore in a shared database.

Alembic compares the whole schema with the team's models and would propose to drop our tables, which those lack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paidonce_models.database.occupied_names import OUR_TABLES

IncludeName = Callable[[str | None, str, Mapping[str, Any]], bool]


def all_but_paidonce(schema: str | None = None) -> IncludeName:
    """The argument ``include_name`` of Alembic's ``context.configure``.

    ``schema`` is PAIDONCE_SCHEMA, where it is set; needed only with ``include_schemas=True``.
    """

    def include_name(name: str | None, kind: str, parents: Mapping[str, Any]) -> bool:
        if kind == "schema":
            return schema is None or name != schema
        if kind == "table":
            return parents.get("schema_name") != schema or (schema is None and name not in OUR_TABLES)
        return True

    return include_name
