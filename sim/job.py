"""One model call on its way through a server."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

from simpy import Event

NEW, WAITING, RUNNING = "new", "waiting", "running"
OK, CANCELLED, CRASHED = "ok", "cancelled", "crashed"
ESCALATED = "escalated"
"""Answered, but the policy had it done again elsewhere."""
REJECTED, UNAVAILABLE, OVERSIZED = "rejected", "unavailable", "oversized"
"""How a job stands. The last six are final; `rejected` is a 429 and comes with `retry_after_s`."""


class Job:
    """One model call on its way through a server; a retry is a new Job.

    `prompt_tokens` counts the whole prompt, of which `cached_tokens` need no prefill (a server with a prompt cache
    overwrites it). Smaller `priority` goes first, as in SimPy. (request, position) keys the random draws;
    `conversation` (default: the request) and `prefix_blocks` key the prompt cache and affinity. `service_s` is for
    servers that take their service time from the caller.
    Filled in by the server: the times in virtual seconds (NaN: never happened), `status`, `replica`,
    `retry_after_s`, `done`, and `device_s`, device seconds used: the integral over its stay of dt / jobs sharing
    the device. They are final once `done` has fired. `ticket` and `entry` are notes of the server to itself.
    """

    __slots__ = (
        "cached_tokens",
        "conversation",
        "device_s",
        "done",
        "entry",
        "finished_s",
        "first_token_s",
        "output_tokens",
        "position",
        "prefix_blocks",
        "priority",
        "prompt_tokens",
        "replica",
        "request",
        "retry_after_s",
        "service_s",
        "started_s",
        "status",
        "submitted_s",
        "ticket",
    )
    done: Event
    ticket: Any
    entry: float

    def __init__(
        self,
        prompt_tokens: int,
        output_tokens: int,
        request: int = 0,
        position: int = 0,
        service_s: float | None = None,
        prefix_blocks: tuple[int, ...] = (),
        *,
        cached_tokens: int = 0,
        priority: int = 0,
        conversation: Hashable | None = None,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.cached_tokens = cached_tokens
        self.priority = priority
        self.request = request
        self.position = position
        self.service_s = service_s
        self.conversation: Hashable = request if conversation is None else conversation
        self.prefix_blocks = prefix_blocks
        self.submitted_s = self.started_s = self.first_token_s = self.finished_s = math.nan
        self.device_s = self.retry_after_s = 0.0
        self.replica = 0
        self.status = NEW
