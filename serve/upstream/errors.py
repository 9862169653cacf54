"""What went wrong at an upstream: one error type with a machine-readable reason.

status, or what happened                  reason         tried again
429                                       rate_limited   yes, after Retry-After
429 with code insufficient_quota          refused        no
408, an answer that takes too long        timeout        yes
409, 500 and above, an error in a stream  server_error   yes
other 4xx                                 refused        no
no connection, a connection that breaks   unreachable    yes
an answer that is no completion           bad_answer     no
the next call might pass max_usd          budget         no
no place within our own limits in time    own_limit      no: nothing was sent
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from workloads.errors import BackendError

if TYPE_CHECKING:
    import openai

REASONS = ("rate_limited", "timeout", "unreachable", "refused", "bad_answer", "budget", "server_error", "own_limit")
_PASSING = {"rate_limited", "timeout", "unreachable", "server_error"}


class UpstreamError(BackendError):
    """An upstream did not answer; `reason` is one of REASONS, `retry_after_s` the wait it asked for, if it did."""

    def __init__(self, reason: str, problem: str, retry_after_s: float | None = None) -> None:
        assert reason in REASONS
        self.reason, self.problem, self.retry_after_s = reason, problem, retry_after_s
        super().__init__(f"{reason}: {problem}")

    @property
    def passing(self) -> bool:
        """Whether the same call may well be answered a little later."""
        return self.reason in _PASSING

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:  # survives the trip back from a worker process
        return type(self), (self.reason, self.problem, self.retry_after_s)


class BudgetExceeded(UpstreamError):
    """The call was not sent: with it, spending could have passed the limit."""

    def __init__(self, problem: str) -> None:
        super().__init__("budget", problem)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self.problem,)


def explain(error: Exception, key: str | None) -> tuple[UpstreamError, bool]:
    """What an exception of the client library means, and whether the attempt may be on the bill.

    `key` is taken out of whatever the upstream wrote back. The exception itself goes no further: it holds the request's
    headers.
    """
    import openai

    if isinstance(error, openai.APIStatusError):
        return _status_error(error, key), False  # upstreams bill answers
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        if type(error.__cause__).__name__ in ("ConnectTimeout", "PoolTimeout"):
            return UpstreamError("unreachable", "no connection in time"), False
        return UpstreamError("timeout", "no answer in time"), True
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__).__name__
        problem = _redacted(f"{cause}: {error.__cause__}" if error.__cause__ else str(error), key)
        return UpstreamError("unreachable", problem), cause != "ConnectError"
    if isinstance(error, openai.APIError) and not isinstance(error, openai.APIResponseValidationError):
        return UpstreamError("server_error", _redacted(str(error), key)), True
    # Broken JSON (ValueError) or JSON of another shape (the rest).
    problem = f"the answer is no chat completion ({type(error).__name__}: {_redacted(str(error), key)})"
    return UpstreamError("bad_answer", problem), True


def retry_after_s(headers: Mapping[str, str], now_s: float | None = None) -> float | None:
    """Seconds the upstream asks to wait; None if it does not ask.

    From `Retry-After` (seconds, or an HTTP date, which counts from `now_s` since the epoch) or `retry-after-ms`.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, date.timestamp() - (time.time() if now_s is None else now_s))
    except (ValueError, TypeError, OverflowError):
        return None


def _status_error(error: openai.APIStatusError, key: str | None) -> UpstreamError:
    status = error.status_code
    reason = {408: "timeout", 409: "server_error", 429: "rate_limited"}.get(status)
    reason = reason or ("server_error" if status >= 500 else "refused")
    if error.code == "insufficient_quota":  # OpenAI's 429 for an account without money: waiting does not help
        reason = "refused"
    return UpstreamError(
        reason, f"status {status}, {_redacted(error.message, key)}", retry_after_s(error.response.headers)
    )


def _redacted(text: str, key: str | None) -> str:
    """One line of at most 300 characters, without the key."""
    line = " ".join((text.replace(key, "[key]") if key else text).split())
    return line if len(line) <= 300 else f"{line[:300]} ..."
