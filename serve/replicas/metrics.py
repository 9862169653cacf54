"""Prometheus metrics of one replica, exported by Ray on every node's metrics port under the prefix `ray_`.

isthmus_requests_total{tier, status}      calls by how they ended: ok, or the reason of the failure
isthmus_prompt_tokens_total{tier}         tokens read, of answered calls
isthmus_completion_tokens_total{tier}     tokens written
isthmus_latency_seconds{tier}             from a call's arrival at the replica to its answer
isthmus_prefill_seconds{tier}, isthmus_decode_seconds{tier}
isthmus_upstream_usd_total{tier, known}  dollars at an upstream: known "yes", or "at most" for attempts without a known cost
isthmus_upstream_retries_total{tier}      attempts after a call's first
isthmus_queued{tier}, isthmus_active{tier}  calls waiting and being answered, as often as Serve checks the replica's health
"""

from __future__ import annotations

from serve.generation import Generation

_BOUNDARIES_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]


class Meter:
    """Counts what a replica does, for Prometheus and for `stats`."""

    def __init__(self, tier: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        def histogram(name: str, text: str) -> Histogram:
            made = Histogram(name, description=text, boundaries=_BOUNDARIES_S, tag_keys=("tier",))
            made.set_default_tags({"tier": tier})
            return made

        def counter(name: str, text: str, *tags: str) -> Counter:
            made = Counter(name, description=text, tag_keys=("tier", *tags))
            made.set_default_tags({"tier": tier})
            return made

        def gauge(name: str, text: str) -> Gauge:
            made = Gauge(name, description=text, tag_keys=("tier",))
            made.set_default_tags({"tier": tier})
            return made

        self._requests = counter("isthmus_requests_total", "Calls by how they ended", "status")
        self._prompt = counter("isthmus_prompt_tokens_total", "Tokens read")
        self._completion = counter("isthmus_completion_tokens_total", "Tokens written")
        self._latency = histogram("isthmus_latency_seconds", "From arrival at the replica to the answer")
        self._prefill = histogram("isthmus_prefill_seconds", "Reading the prompt, up to the first token")
        self._decode = histogram("isthmus_decode_seconds", "Writing the rest of the answer")
        self._queued, self._active = (
            gauge("isthmus_queued", "Calls waiting"),
            gauge("isthmus_active", "Calls being answered"),
        )
        self.totals = (0, 0, 0, 0)
        """Answered and failed calls, prompt and completion tokens."""

    def answered(self, answer: Generation, latency_s: float) -> None:
        """One call was answered, `latency_s` after it came."""
        self._requests.inc(1.0, {"status": "ok"})
        # Ray refuses an increment of 0, and a time that was not measured (NaN) is none.
        for counter, tokens in ((self._prompt, answer.prompt_tokens), (self._completion, answer.completion_tokens)):
            if tokens > 0:
                counter.inc(tokens)
        times = ((self._latency, latency_s), (self._prefill, answer.prefill_s), (self._decode, answer.decode_s))
        for histogram, seconds in times:
            if seconds == seconds:
                histogram.observe(seconds)
        ok, failed, read, written = self.totals
        self.totals = (ok + 1, failed, read + answer.prompt_tokens, written + answer.completion_tokens)

    def failed(self, reason: str, calls: int = 1) -> None:
        """Calls ended without an answer."""
        self._requests.inc(calls, {"status": reason})
        ok, failed, read, written = self.totals
        self.totals = (ok, failed + calls, read, written)

    def load(self, queued: int, active: int) -> None:
        """How many calls wait and are being answered now."""
        self._queued.set(queued)
        self._active.set(active)


class UpstreamMeter:
    """Counts what a replica spends at an upstream."""

    def __init__(self, tier: str) -> None:
        from ray.util.metrics import Counter

        usd = Counter("isthmus_upstream_usd_total", "Dollars spent at the upstream", ("tier", "known"))
        retries = Counter("isthmus_upstream_retries_total", "Attempts after a call's first", ("tier",))
        self._counters = (
            (retries, {"tier": tier}),
            *((usd, {"tier": tier, "known": known}) for known in ("yes", "at most")),
        )
        self._told = (0.0, 0.0, 0.0)

    def spent(self, retried: int, confirmed_usd: float, unconfirmed_usd: float) -> None:
        """Where the totals stand now."""
        now = (float(retried), confirmed_usd, unconfirmed_usd)
        for (counter, tags), total, told in zip(self._counters, now, self._told, strict=True):
            if total > told:  # Ray refuses an increment of 0
                counter.inc(total - told, tags)
        self._told = now
