"""How long a call takes in the mean where nobody else is there: no queue, no failure, no shared link, no cached prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sim.bandwidth import BYTES_PER_S_PER_MBPS
from sim.draws import CommonDraws
from sim.impairment import Jitter, PacketLoss
from sim.profiles import LinkProfile
from sim.scenario import Scenario, Tier
from sim.step_model import StepModel
from workloads.agent import FRAMING_BYTES
from workloads.task import ModelCall

_MTU_BYTES = 1460
_NO_DRAWS = CommonDraws(0, "nominal")
"""Means are asked for only."""


def mean_latency_s(
    scenario: Scenario, tier: str, roofline: StepModel | None, call: ModelCall, completion_tokens: int
) -> float:
    """Mean seconds from the decision to the last byte of the answer; a link with a recorded trace counts with its profile's rates.

    Of a streamed answer, what is left when the last token is there is that token's own bytes.
    """
    spec = scenario.tiers[tier]
    hops = [link.link for link in scenario.route(tier)]
    answer_bytes = FRAMING_BYTES + spec.model.bytes_per_token * completion_tokens
    if scenario.client.stream:
        answer_bytes = answer_bytes / max(1, completion_tokens) + scenario.client.stream_bytes_per_token
    service_s = mean_service_s(spec, roofline, call.prompt_tokens, completion_tokens)
    return _transfer_s(hops, call.sent_bytes, up=True) + service_s + _transfer_s(hops, answer_bytes, up=False)


def nominal_service_s(tier: Tier, roofline: StepModel | None, prompt_tokens: int, completion_tokens: int) -> float:
    """Prefill and decode seconds of one call alone on an idle server, with median endpoint latencies."""
    decode_steps = max(0, completion_tokens - 1)
    if roofline is not None:
        return roofline.prefill_s(prompt_tokens) + roofline.decode_span_s(1, prompt_tokens, decode_steps)
    if tier.endpoint is not None:
        api = tier.endpoint
        return api.ttft_median_s + api.prefill_s_per_token * prompt_tokens + decode_steps / api.tokens_per_s_median
    assert tier.service is not None
    return tier.service.mean_s


def mean_service_s(tier: Tier, roofline: StepModel | None, prompt_tokens: int, completion_tokens: int) -> float:
    """Mean prefill and decode seconds of a call alone; of log-normal endpoints the mean, not the median."""
    api = tier.endpoint
    if api is None:
        return nominal_service_s(tier, roofline, prompt_tokens, completion_tokens)
    first_s = api.ttft_median_s * math.exp(api.ttft_sigma**2 / 2) + api.prefill_s_per_token * prompt_tokens
    token_s = math.exp(api.tokens_per_s_sigma**2 / 2) / api.tokens_per_s_median  # 1 / rate is log-normal, too
    return first_s + max(0, completion_tokens - 1) * token_s


def _transfer_s(hops: Sequence[LinkProfile], size_bytes: float, *, up: bool) -> float:
    return sum(_hop_s(hop, size_bytes, hop.up_mbps if up else hop.down_mbps) for hop in hops)


def _hop_s(hop: LinkProfile, size_bytes: float, mbps: float) -> float:
    """Jitter, loss and the rate's variation by their means; within one transfer the rate stays as it is."""
    loss = PacketLoss(hop.loss, _MTU_BYTES, _NO_DRAWS) if hop.loss else None
    jitter_s = Jitter(hop.jitter, hop.jitter_s, _NO_DRAWS).mean_s if hop.jitter != "none" and hop.jitter_s else 0.0
    resent_s = 2.0 * hop.propagation_s * loss.mean_rounds(size_bytes) if loss else 0.0
    wire_bytes = size_bytes * (loss.bytes_factor if loss else 1.0)
    sending_s = wire_bytes / (mbps * BYTES_PER_S_PER_MBPS) * (1.0 + hop.bandwidth_cv**2)
    return hop.propagation_s + jitter_s + resent_s + sending_s
