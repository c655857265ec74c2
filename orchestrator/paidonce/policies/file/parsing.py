"""Reading ``paidonce.yaml``.

Owns the conversion of a file to a ``PolicyBook``: reading, checking, and the source of each key. Everything wrong with
a file is reported in one error. A file is read once, on request; the holder of a book requests it again to reload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from paidonce.policies.file.problems import MOST_PROBLEMS, first_of, problems_in_file
from paidonce.policies.file.yaml_text import (
    DEFAULT_LIMIT_BYTES,
    KeyPath,
    YamlDocument,
    place,
    read_yaml,
    refuse_long_text,
)
from paidonce.policies.keys import POLICY
from paidonce.policies.misspellings import nearest
from paidonce.policies.policy_book import PolicyBook
from paidonce.policies.precedence import DEFAULT_NAME, Layer, contradictions, layer, written_keys
from paidonce.policies.schema import PolicyFile, Section
from paidonce.policies.targets import PROVIDER_PREFIX, Target
from paidonce.settings import Settings
from paidonce_models.errors import ConfigurationError

_NAMED_IN_SETTINGS: Final = "policies"
_MOST_NAMES: Final = 20


def policies_from_settings(settings: Settings) -> PolicyBook:
    """The book of ``PAIDONCE_POLICIES``. A configured file must exist; the default one need not."""
    if _NAMED_IN_SETTINGS in settings.model_fields_set and not settings.policies.exists():
        raise ConfigurationError(
            f"PAIDONCE_POLICIES names {settings.policies}, and there is no such file; correct the path or unset it"
        )
    return load_policies(settings.policies, limit_bytes=settings.max_policies_bytes)


def load_policies(path: Path | None, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> PolicyBook:
    """The book of a file; without a file, defaults only. Raises ``ConfigurationError`` with everything wrong."""
    if path is None:
        return PolicyBook()
    file = _shown_path(path)
    try:
        with path.open("rb") as opened:
            data = opened.read(limit_bytes + 1)
        refuse_long_text(len(data), file, limit_bytes)
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")  # as text files are read
    except FileNotFoundError:
        return PolicyBook()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}; expected a text file in UTF-8") from None
    return parse_policies(text, file, limit_bytes=limit_bytes)


def parse_policies(text: str, file: str, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> PolicyBook:
    """The book of a file's text; ``file`` is its name in errors and sources."""
    document = read_yaml(text, file, limit_bytes=limit_bytes)

    def place_of(path: KeyPath) -> str:
        return place(file, document.line_of(path), path)

    try:
        content = PolicyFile.model_validate({} if document.value is None else document.value)
    except ValidationError as error:
        raise _refusal(problems_in_file(error, place_of, document.line_of)) from None
    problems = _wrong_names(content, place_of)
    policies = {name: _layer(section, document, file, ("policies", name)) for name, section in content.policies.items()}
    targets = {
        name: Target(
            name=name,
            source=place_of(("targets", name)),
            keys=_layer(section, document, file, ("targets", name)),
        )
        for name, section in content.targets.items()
    }
    layers: Mapping[KeyPath, Layer] = {
        **{("policies", name): each for name, each in policies.items()},
        **{("targets", name): target.keys for name, target in targets.items()},
    }
    problems += [f"{place_of(where)}: {problem}" for where, each in layers.items() for problem in contradictions(each)]
    if problems:
        raise _refusal(first_of(problems))
    return PolicyBook(file=file, policies=policies, targets=targets)


def _layer(section: Section, document: YamlDocument, file: str, where: KeyPath) -> Layer:
    def source_of(path: str) -> str:
        return place(file, document.line_of((*where, *path.split("."))), where)

    return layer(written_keys(section).items(), source_of)


def _wrong_names(content: PolicyFile, place_of: Callable[[KeyPath], str]) -> list[str]:
    """Invalid names: of policies, of targets, and of the policies that targets name."""
    found = []
    known = ", ".join(f"{name:.80}" for name in list(content.policies)[:_MOST_NAMES]) or "none"
    if len(content.policies) > _MOST_NAMES:
        known += f" and {len(content.policies) - _MOST_NAMES:,} more"
    for name in content.policies:
        if not name.strip() or name == DEFAULT_NAME:
            found.append(
                f"{place_of(('policies', name))}: a policy cannot be named {name!r}, which stands for what holds "
                "without one; take another name (a target '*' speaks about all tools)"
            )
    for name, target in content.targets.items():
        if not name.removeprefix(PROVIDER_PREFIX).strip():
            found.append(
                f"{place_of(('targets', name))}: found {name!r}, expected the name of a tool, a pattern such as "
                "'crm_*', or provider:NAME; correct it there"
            )
        if POLICY in target.model_fields_set and target.policy not in content.policies:
            near = nearest(target.policy, content.policies) if len(found) < MOST_PROBLEMS else ""
            found.append(
                f"{place_of(('targets', name, POLICY))}: there is no policy {target.policy!r:.80}"
                f"{near} (known are: {known}); declare it under `policies:`"
            )
    return found


def _refusal(problems: list[str]) -> ConfigurationError:
    return ConfigurationError("; ".join(problems), problems=problems)


def _shown_path(path: Path) -> str:
    """Relative if the file is below the current folder, as it usually is."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)
