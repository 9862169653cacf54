"""A policy behind the gateway that looks at answers: the caller gets the one it takes, and pays for all of them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.serve.gateway_server import WordPlacer, start_gateway
from workloads.placing import Decision, TierLoad
from workloads.task import Completion, ModelCall


class DoubtingPlacer(WordPlacer):
    """Under the name of the edge nothing from there is good enough."""

    def __init__(self) -> None:
        super().__init__()
        self.reviewed: list[tuple[str, str]] = []

    def reviews(self, model_name: str) -> bool:
        return model_name == "edge"

    def review(
        self, model_name: str, request: int, call: ModelCall, load: Mapping[str, TierLoad], decision: Decision, completion: Completion
    ) -> Decision | None:  # fmt: skip
        self.reviewed.append((decision.tier, completion.text))
        return Decision("cloud", "doubt", 0.0) if decision.tier == "edge" else None


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_the_policy_does_not_take(stream: bool) -> None:
    """The cloud's answer arrives, with its reason and the cost of both."""
    placer = DoubtingPlacer()
    with start_gateway(None, placer) as gateway:
        taken = gateway.chat(model="edge", stream=stream)
        plain = gateway.chat(model="cloud", stream=stream)
        assert taken.status == 200
        assert (taken.headers["x-isthmus-tier"], taken.headers["x-isthmus-reason"]) == ("cloud", "doubt")
        assert [tier for tier, _ in placer.reviewed] == ["edge", "cloud"]
        assert [gateway.tiers[name].started for name in ("edge", "cloud")] == [1, 2]
        if not stream:
            cost_usd, alone_usd = (float(each.headers["x-isthmus-cost-usd"]) for each in (taken, plain))
            assert cost_usd == pytest.approx(1.1 * alone_usd)
            said, alone = (each.document["choices"] for each in (taken, plain))
            assert said == alone
