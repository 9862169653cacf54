"""A policy of one's own: keep a request on the small model until its history has grown long.

In a scenario: `policies: [{policy: "long_history.py:LongHistory", after_tokens: [200, 400, 800]}]`.
"""

from typing import Annotated

from pydantic import Field

from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy


class LongHistoryOptions(PolicyOptions):
    """What a scenario can set; every field has a type, a default and a docstring."""

    after_tokens: Annotated[int, Field(ge=0)] = 400
    """Longest conversation that stays on the small model, tokens."""


class LongHistory(RoutingPolicy):
    """Send a subtask to the large model once the conversation is longer than `after_tokens`."""

    Options = LongHistoryOptions
    knob = "after_tokens"

    def place(self, seen: Observation) -> Placement:
        """Compare the length of the conversation so far."""
        if seen.call.prompt_tokens > self.options.after_tokens:
            return Placement(seen.large, "long history")
        return Placement(seen.small, "short history")
