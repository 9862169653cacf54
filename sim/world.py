"""What all requests of one simulated cell share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simpy import Environment, Event

from sim.attempt import wrong_placement
from sim.draws import CommonDraws
from sim.policies.base import Placement, RoutingPolicy, Signals, TierView
from sim.records import RequestRow, RowTable
from sim.scenario import Client, Sla
from sim.tier import TierRuntime
from sim.watchdog import Watchdog
from workloads.agent import Agent
from workloads.backend import InferenceBackend


class World:
    """What all requests of one simulated cell share."""

    __slots__ = (
        "agent", "attempt_watchdog", "backend", "backoff_draws", "client", "deadline_s", "decision_s", "env",
        "idle", "ladders", "large", "on_end", "policy", "request_rows", "reviews", "signals", "small", "stream_bytes_per_token",
        "subtask_rows", "tiers", "tries",
        "under_way", "views", "watchdog",
    )  # fmt: skip

    def __init__(
        self, env: Environment, *, tiers: dict[str, TierRuntime], views: tuple[TierView, ...], client: Client, sla: Sla,
        agent: Agent, backend: InferenceBackend, policy: RoutingPolicy, signals: Signals, backoff_draws: CommonDraws,
        subtask_rows: RowTable, request_rows: RowTable, on_end: Callable[[RequestRow], None] | None = None,
    ) -> None:  # fmt: skip
        self.env, self.tiers, self.views, self.client = env, tiers, views, client
        self.agent, self.backend, self.policy, self.signals = agent, backend, policy, signals
        self.backoff_draws, self.subtask_rows, self.request_rows = backoff_draws, subtask_rows, request_rows
        self.deadline_s = sla.deadline_s or client.timeout_s
        # Copied, as reading a field of a pydantic model takes several times as long.
        self.decision_s: float = policy.options.decision_s
        self.stream_bytes_per_token = client.stream_bytes_per_token if client.stream else None
        """None where answers arrive whole."""
        self.tries = range(client.retries + 1)
        self.ladders = {name: (tier, *tier.fall_backs) if client.fail_over else (tier,) for name, tier in tiers.items()}
        """Which tiers to try, in order, for a subtask placed on one."""
        self.small = next((view.name for view in views if view.role == "slm"), views[0].name)
        self.large = next((view.name for view in views if view.role == "llm"), views[-1].name)
        self.watchdog = Watchdog(env, client.timeout_s, "timeout")
        self.attempt_watchdog = (
            Watchdog(env, client.attempt_timeout_s, "attempt-timeout") if client.attempt_timeout_s else None
        )
        self.reviews = type(policy).review is not RoutingPolicy.review
        self.on_end = on_end
        self.under_way = 0
        self.idle: Event | None = None
        """Set by who waits for the last request under way to end."""

    def checked(self, placement: Any) -> Placement:
        """The placement, if it is one on a tier there is; raises InputError otherwise."""
        if not isinstance(placement, Placement) or placement.tier not in self.ladders:
            raise wrong_placement(placement, self.tiers)
        return placement
