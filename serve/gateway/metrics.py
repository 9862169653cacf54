"""Prometheus metrics of the gateway, exported by Ray on every node's metrics port under the prefix `ray_`.

    isthmus_gateway_requests_total{model, tier, status}   chat calls by HTTP status; 499: the client hung up
    isthmus_gateway_latency_seconds{model, tier}          from a call's arrival to the end of its answer
    isthmus_gateway_tokens_total{model, tier, kind}       prompt (of which cached), cached, completion
    isthmus_gateway_cost_usd_total{model, tier}           the scenario's ledger, of answered calls
    isthmus_gateway_energy_joules_total{model, tier}
    isthmus_gateway_failovers_total{model, tier}          answered by another tier than the one decided on
    isthmus_gateway_unconfirmed_total{model, tier, reason}  attempts that may have cost what is in no other number: the client hung
                                                          up (cancelled), or the tier failed after it was asked

Values of a knob that are not listed are counted together as `isthmus/<family>@*`, so the number of series is bounded.
"""

from __future__ import annotations

from serve.gateway.replies import CallRecord

_BOUNDARIES_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0]
_LABELS = ("model", "tier")


class GatewayMeter:
    """Counts chat calls as they end; what a gateway's `observe` is under Ray."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram

        def counter(name: str, text: str, *tags: str) -> Counter:
            return Counter(f"isthmus_gateway_{name}_total", description=text, tag_keys=(*_LABELS, *tags))

        self._requests = counter("requests", "Chat calls by HTTP status", "status")
        self._tokens = counter("tokens", "Tokens of answered calls", "kind")
        self._cost_usd = counter("cost_usd", "Cost of answered calls, $")
        self._energy_j = counter("energy_joules", "Energy of answered calls")
        self._failovers = counter("failovers", "Calls answered by another tier than decided")
        self._unconfirmed = counter("unconfirmed", "Attempts without a known cost", "reason")
        self._latency = Histogram(
            "isthmus_gateway_latency_seconds", description="From arrival to the end of the answer", boundaries=_BOUNDARIES_S,
            tag_keys=_LABELS,
        )  # fmt: skip

    def __call__(self, call: CallRecord) -> None:
        """Count one call."""
        tags = {"model": call.model, "tier": call.tier}
        self._requests.inc(1.0, {**tags, "status": str(call.status)})
        self._latency.observe(call.elapsed_s, tags)
        tokens = {"prompt": call.prompt_tokens, "cached": call.cached_tokens, "completion": call.completion_tokens}
        for kind, count in tokens.items():
            if count > 0:  # Ray refuses an increment of 0
                self._tokens.inc(count, {**tags, "kind": kind})
        for counter, amount in ((self._cost_usd, call.cost_usd), (self._energy_j, call.energy_j)):
            if amount > 0:
                counter.inc(amount, tags)
        if call.failed_over:
            self._failovers.inc(1.0, tags)
        for tier, reason in call.lost:
            self._unconfirmed.inc(1.0, {"model": call.model, "tier": tier, "reason": reason})
