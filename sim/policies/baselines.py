"""The yardsticks: one tier throughout, a coin, and the length of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sim.draws import CommonDraws
from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study, TierView
from sim.profiles import Share
from sim.records import RequestRow
from workloads.errors import InputError, suggest


class Placements(dict[str, Placement]):
    """One placement per tier with the same reason, made on first use: nothing is built where every subtask passes."""

    def __init__(self, reason: str, *, decided: bool = True) -> None:
        super().__init__()
        self._reason, self._decided = reason, decided

    def __missing__(self, tier: str) -> Placement:
        placement = self[tier] = Placement(tier, self._reason, decided=self._decided)
        return placement


class FixedOptions(PolicyOptions):
    """Options of `fixed`."""

    tier: str = "small"
    """Where every subtask goes: a tier's name, or `small` or `large` for the tier in that role."""


class Fixed(RoutingPolicy):
    """Send every subtask to one tier."""

    Options: ClassVar[type[PolicyOptions]] = FixedOptions
    knob: ClassVar[str | None] = "tier"

    def __init__(self, options: FixedOptions) -> None:
        super().__init__(options)
        self._tier = options.tier
        self._placements = Placements("fixed")

    def check(self, tiers: Sequence[TierView]) -> None:
        """The tier must exist; a tier that is itself called `small` or `large` hides the role."""
        allowed = {tier.name for tier in tiers} | {"small", "large"}
        if self._tier not in allowed:
            problem = f"no tier is called {self._tier!r}"
            raise InputError("policy 'fixed', option 'tier'", problem, suggest(self._tier, allowed))

    def prepare(self, study: Study) -> None:
        """Check once more, for callers that did not validate a scenario."""
        self.check(study.tiers)

    def place(self, seen: Observation) -> Placement:
        """Name the tier."""
        tier = self._tier
        if tier == "small":
            return self._placements[seen.small]
        return self._placements[seen.large if tier == "large" else tier]


class AllSlm(RoutingPolicy):
    """Send every subtask to the small model: the cheap end of a frontier."""

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._placements = Placements("always small")

    def place(self, seen: Observation) -> Placement:
        """Name the small tier."""
        return self._placements[seen.small]


class AllLlm(RoutingPolicy):
    """Send every subtask to the large model: what a router tries to match for less."""

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._placements = Placements("always large")

    def place(self, seen: Observation) -> Placement:
        """Name the large tier."""
        return self._placements[seen.large]


class RandomOptions(PolicyOptions):
    """Options of `random`."""

    p: Share = 0.5
    """Probability of the large tier; 0 = never, 1 = always."""
    per: Literal["request", "subtask"] = "subtask"
    """Whether one coin decides a whole request, or each subtask has its own."""


class Random(RoutingPolicy):
    """Toss a coin: what any router must beat.

    A subtask's coin belongs to (request, position), so raising `p` only moves more subtasks to the large tier.
    """

    Options: ClassVar[type[PolicyOptions]] = RandomOptions
    knob: ClassVar[str | None] = "p"

    def __init__(self, options: RandomOptions) -> None:
        super().__init__(options)
        self._p = options.p
        self._per_request = options.per == "request"
        self._coins = CommonDraws(0, "policy/random")
        self._placements = Placements("coin")

    def prepare(self, study: Study) -> None:
        """Take the coins of the scenario's seed."""
        self._coins = CommonDraws(study.seed, "policy/random")

    def place(self, seen: Observation) -> Placement:
        """Look at the subtask's coin."""
        position = 0 if self._per_request else seen.call.position
        large = self._coins.uniform(seen.request, position) < self._p
        return self._placements[seen.large if large else seen.small]


class PromptLengthOptions(PolicyOptions):
    """Options of `prompt-length`."""

    threshold_tokens: Annotated[int, Field(ge=0)] = 300
    """Longest prompt that stays on the small tier, tokens."""
    per: Literal["request", "subtask"] = "request"
    """Whether the first prompt decides for the whole request, or each subtask's own prompt for that subtask."""


class PromptLength(RoutingPolicy):
    """Send long prompts to the large model: no learning at all, and often hard to beat."""

    Options: ClassVar[type[PolicyOptions]] = PromptLengthOptions
    knob: ClassVar[str | None] = "threshold_tokens"

    def __init__(self, options: PromptLengthOptions) -> None:
        super().__init__(options)
        self._threshold_tokens = options.threshold_tokens
        self._per_request = options.per == "request"
        self._long: dict[int, bool] = {}
        self._placements = Placements("prompt length")

    def place(self, seen: Observation) -> Placement:
        """Compare the prompt with the threshold."""
        large = seen.call.prompt_tokens > self._threshold_tokens
        if self._per_request:
            large = self._long.setdefault(seen.request, large)
        return self._placements[seen.large if large else seen.small]

    def learn(self, row: RequestRow) -> None:
        """Forget a request that has ended."""
        self._long.pop(row.request, None)
