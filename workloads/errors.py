"""The one exception tree of Isthmus.

IsthmusError
├── InputError            something the user gave us is wrong: exit code 2, nothing written
│   └── RecordingError    a recording cannot be read (version, truncation, a broken line)
└── BackendError          a model could not answer
    ├── ModelUnavailable  a live model could not answer now: the client retries, fails over or gives up
    └── RecordingMiss     replay was asked for a conversation nobody recorded

An InputError's text always says where, what was found and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IsthmusError(Exception):
    """Base of every error Isthmus raises on purpose."""


class InputError(IsthmusError):
    """Bad input: `place` (file, line or row, field), `problem` (what was found) and `remedy` (what is allowed)."""

    def __init__(self, place: str, problem: str, remedy: str) -> None:
        self.place, self.problem, self.remedy = place, problem, remedy
        super().__init__(f"{place}: {problem}. {remedy}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:  # survives the trip back from a worker process
        return type(self), (self.place, self.problem, self.remedy)


class RecordingError(InputError):
    """A recording that cannot be read."""


class BackendError(IsthmusError):
    """A model could not answer this call."""


class ModelUnavailable(BackendError):
    """A live model could not answer this call.

    `reason` is a short word that ends up in the records after `live-` ("replica-died", "timeout", "unreachable", "rate-limited", "refused",
    "overloaded", "budget", "own-limit", "bad-answer"); `retry_after_s` is what the server asked a client to wait.
    """

    def __init__(self, reason: str, detail: str = "", retry_after_s: float = 0.0) -> None:
        self.reason, self.detail, self.retry_after_s = reason, detail, retry_after_s
        super().__init__(f"{reason}: {detail}" if detail else reason)

    def __reduce__(self) -> tuple[type, tuple[str, str, float]]:  # survives the trip back from a replica
        return type(self), (self.reason, self.detail, self.retry_after_s)


class RecordingMiss(BackendError):
    """Replay met a conversation that was never recorded."""


def suggest(found: str, allowed: Iterable[str]) -> str:
    """'Did you mean "x"? Allowed: ...' for an unknown name: the nearest valid ones first, then the others in order."""
    names = sorted(allowed)
    near = difflib.get_close_matches(found, names, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return f"{hint}Allowed: {', '.join([*near, *(n for n in names if n not in near)])}"
