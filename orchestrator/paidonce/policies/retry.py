"""``Retry``: how often and how long after a failure a step is tried again. Pure: randomness is passed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from paidonce.policies.durations import parse_duration
from paidonce_models.errors import DeclarationError, InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """Exponential backoff with full jitter: the wait before try n+1, in seconds, is uniform between 0 and
    ``min(cap_seconds, base_seconds * 2**(n - 1))``.

    (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.)
    ``max_attempts`` includes the first try. ``retry_on`` names exception types by class or
    class name, including their subclasses; empty means every ``Exception`` but
    ``InvalidInput``: arguments that do not fit and a result that cannot be stored fail the
    same way each time, and each try of the latter is paid for.
    """

    max_attempts: int = 3
    base_seconds: float = 0.5
    cap_seconds: float = 30.0
    retry_on: tuple[type[BaseException] | str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise DeclarationError(f"retry max_attempts={self.max_attempts}; expected at least 1, which is no retry")
        if self.base_seconds < 0 or self.cap_seconds < 0:
            raise DeclarationError(
                f"retry base_seconds={self.base_seconds}, cap_seconds={self.cap_seconds}; expected 0 or more"
            )

    def covers(self, error: BaseException) -> bool:
        """Whether a step that raised this is worth a retry."""
        if not isinstance(error, Exception):
            return False
        if not self.retry_on:
            return not isinstance(error, InvalidInput)
        names = {cls.__name__ for cls in type(error).__mro__}
        return any(entry in names if isinstance(entry, str) else isinstance(error, entry) for entry in self.retry_on)

    def delay_seconds(self, failures: int, uniform: Callable[[float, float], float]) -> float:
        """The wait in seconds after that many failures (1 or more)."""
        ceiling = min(self.cap_seconds, self.base_seconds * 2.0 ** min(failures - 1, 60))
        return uniform(0.0, ceiling)


NO_RETRY = Retry(max_attempts=1)
_KEYS_OF_POLICIES_ONLY = ("backoff", "honor_retry_after", "jitter")
"""What a mapping may also hold; kept in the declaration's ``policy_keys``, not in the ``Retry``."""


def retry_from(value: object, where: str) -> Retry:
    """Convert ``retry=``: a ``Retry``, a number of attempts, a mapping, or ``None`` for no retry."""
    if value is None:
        return NO_RETRY
    if isinstance(value, Retry):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Retry(max_attempts=value)
    if isinstance(value, Mapping):
        renamed = {"base": "base_seconds", "cap": "cap_seconds"}
        fields = {
            renamed.get(str(key), str(key)): _plain(entry, f"{where}: retry {key}")
            for key, entry in value.items()
            if key not in _KEYS_OF_POLICIES_ONLY
        }
        if "retry_on" in fields:
            fields["retry_on"] = tuple(fields["retry_on"])
        try:
            return Retry(**fields)
        except TypeError as error:
            raise DeclarationError(
                f"{where}: retry={value!r} has keys that are not known; "
                f"expected max_attempts, base_seconds, cap_seconds, retry_on, {', '.join(_KEYS_OF_POLICIES_ONLY)}"
            ) from error
    raise DeclarationError(f"{where}: retry={value!r}; expected a number of attempts, Retry(...) or None")


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if not isinstance(value, str):
        return value
    try:
        return parse_duration(value)
    except ValueError as error:
        raise DeclarationError(f"{where}={value!r}; expected {error}") from None
