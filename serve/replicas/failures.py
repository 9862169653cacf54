"""Every way a call to a Serve deployment can end without an answer, as a ModelUnavailable with a short reason.

replica-died   its process or node is gone, or it was stopped; the same call may be sent again
timeout        no answer in time, wherever the call waited
overloaded     Serve's queue for the tier is full, or the engine's
unreachable    there is no replica to send it to, or no cluster
cancelled      the caller gave it up
bad-answer     the model's own code failed
"""

from __future__ import annotations

import asyncio
import concurrent.futures

from workloads.errors import ModelUnavailable

_LONGEST = 200


def unavailable(error: BaseException, tier: str) -> ModelUnavailable:
    """The ModelUnavailable behind an exception of Serve, Ray or a future; `tier` goes into its detail."""
    from ray import exceptions
    from ray.serve import exceptions as serve_exceptions

    if isinstance(error, ModelUnavailable):
        return ModelUnavailable(
            error.reason, error.detail, error.retry_after_s
        )  # Ray's own subclass of it becomes ours
    if isinstance(error, serve_exceptions.BackPressureError):
        return ModelUnavailable("overloaded", f"{tier}: {error.message}", error.retry_after_s or 0.0)
    cancelled = (exceptions.TaskCancelledError, concurrent.futures.CancelledError, asyncio.CancelledError)
    reason = "bad-answer"
    if isinstance(error, cancelled):
        reason = "cancelled"
    elif isinstance(error, TimeoutError):  # Ray's GetTimeoutError is one
        reason = "timeout"
    elif isinstance(error, (*_gone(), serve_exceptions.ReplicaUnavailableError)):
        reason = "replica-died"
    elif isinstance(error, exceptions.RayTaskError):
        reason = "bad-answer"
    elif isinstance(error, (serve_exceptions.RayServeException, exceptions.RayError, RuntimeError, OSError)):
        reason = "unreachable"
    return ModelUnavailable(reason, f"{tier}: {_line(error)}")


def _gone() -> tuple[type[Exception], ...]:
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
    )


def _line(error: BaseException) -> str:
    """The error in one line of bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
