"""The operator's settings, and where each value came from.

Owns the names, defaults, limits and meanings of all settings. Reads three places, the first that has a name wins: the
environment (``PAIDONCE_*``), ``.env`` in the current folder, and ``[tool.paidonce]`` in the nearest ``pyproject.toml``
of the current folder or its parents that has such a table (see ``setting_sources``).

Must never open a connection or start a server: an unset broker stays ``None`` here, and ``broker_urls`` turns that into
the embedded one. All other code is given a ``Settings`` and does not read the environment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from paidonce.configuration.broker_addresses import AMQP_SCHEMES, REDIS_SCHEMES, with_usual_scheme
from paidonce.configuration.server_urls import check_broker_url, check_store_url
from paidonce.configuration.setting_errors import explain_bad_value
from paidonce.configuration.setting_sources import (
    ENVIRONMENT_PREFIX,
    ProjectTable,
    refuse_large_dotenv,
    warn_of_unknown_names,
)
from paidonce.configuration.store_settings import StoreSettings
from paidonce.usage.provider_hosts_setting import parse_provider_hosts
from paidonce_models.budgets import Unit
from paidonce_models.errors import ConfigurationError
from paidonce_models.money import nanousd_from_usd
from paidonce_models.privacy.masking import mask_names
from paidonce_models.queues import DEFAULT_NAMESPACE, EXPECTED_NAMESPACE, is_namespace

BROKER_SCHEMES = (*AMQP_SCHEMES, *REDIS_SCHEMES, "memory")
_MEBIBYTE = 1024 * 1024
_LARGEST_COUNT = 10**9
_LONGEST_SECONDS = 3650 * 86_400.0
"""Ten years, as for the durations of policies: anything longer must be a wrong unit."""


class Settings(StoreSettings):
    """All settings, frozen. Use ``load_settings``, which turns a bad value into a ``ConfigurationError``."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    home: Path = Field(
        default=Path(".paidonce"), description="Folder of the default database and of the embedded broker's data."
    )
    database_url: str = Field(
        default="", repr=False, description="The store: SQLite under PAIDONCE_HOME, or a postgresql:// URL."
    )
    broker_url: str | None = Field(
        default=None, repr=False, description="RabbitMQ or Redis/Valkey; unset starts the embedded Valkey on demand."
    )
    redis_url: str | None = Field(
        default=None,
        repr=False,
        description="Where breakers and retry budgets are shared; unset uses the broker where it speaks Redis.",
    )
    agents: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Modules that hold agents, steps and tools, separated by commas or spaces."
    )
    policies: Path = Field(
        default=Path("paidonce.yaml"),
        description="The policy file for tools, steps and providers; if the default file is missing, defaults apply.",
    )
    max_policies_bytes: int = Field(
        default=256 * 1024,
        ge=1024,
        le=64 * _MEBIBYTE,
        description="How large that file may be, with and without its aliases expanded.",
    )
    breakers: bool = Field(default=True, description="Whether circuit breakers are on; `off` permits every call.")
    inline_retry_seconds: float = Field(
        default=5,
        ge=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="How long a tool that is called inside a step may be retried in place.",
    )
    namespace: str = Field(
        default=DEFAULT_NAMESPACE,
        description="Separates several teams in one store and on one broker: their runs, queues and workers.",
    )
    lease_seconds: float = Field(
        default=10,
        gt=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="How long a step belongs to a worker whose heartbeat is missing.",
    )
    frozen_seconds: float = Field(
        default=60,
        gt=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="How long a step belongs to a process that lives but whose heartbeat is missing: it computes, or "
        "is stopped. Never less than two leases.",
    )
    heartbeat_seconds: float = Field(
        default=3, gt=0, le=_LONGEST_SECONDS, allow_inf_nan=False, description="How often a worker renews its leases."
    )
    sweep_seconds: float = Field(
        default=2,
        gt=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="How often the sweeper looks for lost work.",
    )
    max_depth: int = Field(default=10, ge=1, le=1_000, description="How deep agents may await agents.")
    max_steps: int = Field(
        default=10_000,
        ge=1,
        le=_LARGEST_COUNT,
        description="How many steps, tools and child runs a run may request; then it is blocked until this is raised.",
    )
    warn_steps: int = Field(
        default=1_000, ge=1, le=_LARGEST_COUNT, description="From how many of these the log warns of the run, once."
    )
    max_runs: int = Field(
        default=10_000,
        ge=1,
        le=_LARGEST_COUNT,
        description="How many descendants a run may have, over all generations.",
    )
    max_timers: int = Field(
        default=50_000, ge=1, le=_LARGEST_COUNT, description="How often a timer (`asyncio.sleep`) may wake a run."
    )
    cancel_grace_seconds: float = Field(
        default=60,
        ge=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="How long a cancelled agent's `finally` may await steps.",
    )
    drain_seconds: float = Field(
        default=20,
        ge=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="How long a stopping worker lets its steps finish.",
    )
    turn_seconds: float = Field(
        default=5,
        ge=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="How long a thread executes its run eagerly before a step goes over the broker; 0: never.",
    )
    slice_seconds: float = Field(
        default=5,
        gt=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="How long an agent may compute between two awaits.",
    )
    step_timeout_seconds: float = Field(
        default=900,
        gt=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="A step's time limit where its decorator names none.",
    )
    max_payload_bytes: int = Field(
        default=50 * _MEBIBYTE,
        ge=1024,
        le=1024 * _MEBIBYTE,
        description="The largest argument or result that is accepted.",
    )
    max_tags: int = Field(default=50, ge=0, le=10_000, description="How many tags a run may have.")
    # At most 1,200: name and value of a tag with a budget share one row of a PostgreSQL index, of 2,704 bytes.
    max_tag_bytes: int = Field(
        default=1_000, ge=1, le=1_200, description="How many bytes the name of a tag may have, and its value, in UTF-8."
    )
    max_tags_bytes: int = Field(
        default=10_000,
        ge=0,
        le=_MEBIBYTE,
        description="How many bytes all names and values of a run's tags may have together.",
    )
    no_worker_seconds: float = Field(
        default=60,
        gt=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="After how long without a worker that holds its code a run is blocked.",
    )
    cache_size: int = Field(
        default=1000, ge=1, le=_LARGEST_COUNT, description="How many runs a process keeps in memory, ready to resume."
    )
    concurrency: int = Field(default=16, ge=1, le=10_000, description="How many steps a worker runs at once.")
    isolated_at_once: int = Field(
        default=4,
        ge=1,
        le=1_000,
        description="How many steps that may kill their process a worker runs at once, each in a separate process.",
    )
    shards: int = Field(default=1, ge=1, le=1024, description="Into how many parts the sweepers divide the store.")
    database_pool_size: int = Field(
        default=8, ge=1, le=10_000, description="How many store connections a process may hold."
    )
    provider_hosts: Annotated[tuple[tuple[str, str], ...], NoDecode] = Field(
        default=(),
        description="Self-hosted or gateway hosts whose usage is captured, with the provider whose API they speak: "
        "llm.internal=openai,127.0.0.1:4000=anthropic.",
    )
    masked_names: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="More names whose values are masked in logs and in errors, shown or stored: parameters, "
        "headers, JSON keys, variables, separated by commas or spaces.",
    )
    step_estimate_usd: Decimal = Field(
        default=Decimal("0.01"),
        ge=0,
        le=1_000_000,
        description="What a budget reserves for a step that declares no maximum and has no history, in US dollars; "
        "never more than is left.",
    )
    step_estimate_tokens: int = Field(
        default=2_000, ge=0, le=10**12, description="The same in tokens, where a budget counts tokens."
    )

    @property
    def guesses(self) -> dict[Unit, int]:
        """What budgets reserve for an attempt without an estimate, by unit."""
        return {
            Unit.USD: nanousd_from_usd(self.step_estimate_usd, round_to_nano=True),
            Unit.TOKENS: self.step_estimate_tokens,
            Unit.STEPS: 1,
        }

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Given values (a command's options) first, then environment, ``.env``, ``pyproject.toml``."""
        return init_settings, env_settings, dotenv_settings, ProjectTable(settings_cls)

    @field_validator("home", "policies")
    @classmethod
    def _absolute_path(cls, path: Path) -> Path:
        """Make it absolute at once, so that a child process in another folder uses the same place."""
        return _expanded(path)

    @field_validator("namespace")
    @classmethod
    def _known_namespace(cls, namespace: str) -> str:
        if not is_namespace(namespace):
            raise ValueError(EXPECTED_NAMESPACE)
        return namespace

    @field_validator("agents", "masked_names", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if isinstance(value, str):
            value = re.split(r"[,\s]+", value)
        if isinstance(value, Sequence):
            return tuple(dict.fromkeys(name for name in value if name != ""))
        return value

    @field_validator("provider_hosts", mode="before")
    @classmethod
    def _split_provider_hosts(cls, value: object) -> object:
        return parse_provider_hosts(value)

    @field_validator("database_url")
    @classmethod
    def _known_store(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        if url == "":
            return url
        if separator and scheme in ("postgres", "postgresql", "postgresql+psycopg"):
            return check_store_url(f"postgresql+psycopg://{rest}")
        if separator and scheme == "sqlite":
            return f"sqlite:///{_sqlite_file(rest)}"
        raise ValueError("a sqlite:///FILE or postgresql://USER@HOST/DATABASE URL")

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, url: str | None) -> str | None:
        if url is None:
            return None
        url = with_usual_scheme(url)
        scheme, separator, _ = url.partition("://")
        if separator and scheme in BROKER_SCHEMES:
            check_broker_url(url, redis=scheme in REDIS_SCHEMES)
            return url
        raise ValueError(f"a URL of one of the schemes {', '.join(BROKER_SCHEMES)}")

    @field_validator("redis_url")
    @classmethod
    def _known_redis(cls, url: str | None) -> str | None:
        if url is None:
            return None
        url = with_usual_scheme(url)
        scheme, separator, _ = url.partition("://")
        if separator and scheme in REDIS_SCHEMES:
            check_broker_url(url, redis=True)
            return url
        raise ValueError(f"a URL of one of the schemes {', '.join(REDIS_SCHEMES)}")

    @model_validator(mode="after")
    def _agree_with_each_other(self) -> Self:
        if self.database_url == "":
            object.__setattr__(self, "database_url", f"sqlite:///{self.home / 'paidonce.db'}")
        if self.schema is not None and self.database_url.startswith("sqlite:"):
            raise ValueError(
                f"a postgresql:// store, but PAIDONCE_SCHEMA is {self.schema} and PAIDONCE_DATABASE_URL names SQLite, "
                "which has no schemas"
            )
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                f"a lease of at least two heartbeats, but PAIDONCE_LEASE_SECONDS is {self.lease_seconds:g} "
                f"and PAIDONCE_HEARTBEAT_SECONDS is {self.heartbeat_seconds:g}"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class SettingDescription:
    """One line of the settings table in the documentation."""

    name: str
    default: str
    meaning: str


def describe_settings() -> tuple[SettingDescription, ...]:
    """Name in the environment, default and meaning of every setting, in the order of declaration."""
    spoken_defaults = {
        "database_url": "sqlite:///PAIDONCE_HOME/paidonce.db",
        "broker_url": "the embedded Valkey",
        "schema": "the first of the search path",
        "redis_url": "the broker where it speaks Redis",
        "agents": "none",
        "provider_hosts": "none",
        "masked_names": "none",
    }
    return tuple(
        SettingDescription(
            name=f"{ENVIRONMENT_PREFIX}{name.upper()}",
            default=spoken_defaults.get(name, _as_typed(field.default)),
            meaning=field.description if field.description is not None else "",
        )
        for name, field in Settings.model_fields.items()
    )


def _as_typed(default: object) -> str:
    """As a user would write it into the environment."""
    return str(default).lower() if isinstance(default, bool) else str(default)


def load_settings(**given: object) -> Settings:
    """The settings of this process in its current folder; ``given`` values (from a command line) take precedence.

    Raises ``ConfigurationError`` that lists every bad value with the place where it was set. Logs one warning for
    unknown ``PAIDONCE_*`` names. ``None`` in ``given`` counts as not given.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    unknown = sorted(chosen.keys() - Settings.model_fields.keys())
    if unknown:
        raise ConfigurationError(f"there is no setting named {', '.join(unknown)}")
    names = tuple(Settings.model_fields)
    refuse_large_dotenv()
    try:
        settings = Settings(**chosen)  # type: ignore[arg-type]  # validated by pydantic, not by the signature
    except ValidationError as error:
        problems = [
            explain_bad_value(str(problem["loc"][0]) if problem["loc"] else None, str(problem["msg"]), chosen)
            for problem in error.errors(include_url=False, include_context=False)
        ]
        raise ConfigurationError("; ".join(problems)) from None
    mask_names(settings.masked_names)
    warn_of_unknown_names(names)
    return settings


def _sqlite_file(path: str) -> Path:
    """The absolute path after ``sqlite://``; a database in memory cannot be shared by processes."""
    if not path.startswith("/") or path in ("/", "/:memory:"):
        raise ValueError("the URL of a file, as sqlite:///paidonce.db (relative) or sqlite:////var/lib/paidonce.db")
    return _expanded(Path(path[1:]))


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:  # no HOME, and a user without an entry in the password database
        raise ValueError("a path without `~`, as the home of this user is not known") from None
