"""The settings for reaching the store beyond its address; a part of ``Settings``.

A separate class, because pydantic warns about the name ``schema``, which was a method of its models.
"""

from __future__ import annotations

import warnings

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from paidonce_models.database.session_choices import SCHEMA_RULE, Pooler, is_schema_name

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message='Field name "schema"')

    class StoreSettings(BaseSettings):
        """Where the tables are, and what stands before the server."""

        schema: str | None = Field(  # type: ignore[assignment]  # pydantic's method of that name is deprecated
            default=None,
            description="The schema of PostgreSQL that holds the tables; unset, the search path decides.",
        )
        pooler: Pooler = Field(
            default=Pooler.AUTO,
            description="What stands before PostgreSQL: `transaction`, a pooler in that mode, `session`, none or one "
            "in session mode, or `auto`, which finds out.",
        )

        @field_validator("schema")
        @classmethod
        def _known_name(cls, name: str | None) -> str | None:
            if name is not None and not is_schema_name(name):
                raise ValueError(f"a {SCHEMA_RULE}")
            return name
