"""A hosted model behind an API: drawn speed, limits answered with a 429, outages.

Nothing is known of the machines behind it, so a call takes a time to first token and then a rate, both drawn from
log-normal distributions (what measured calls look like), the same for every policy: the draws belong to
(request, position).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from simpy import Environment, Event

from sim.draws import CommonDraws
from sim.job import OVERSIZED, REJECTED, UNAVAILABLE, Job
from sim.prompt_cache import PromptCache
from sim.server import ServiceTimer, SlotServer
from workloads.errors import InputError


@dataclass(frozen=True)
class LogNormal:
    """A log-normal quantity: its `median` and the standard deviation `sigma` of its natural logarithm."""

    median: float
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if not (0.0 < self.median < math.inf and 0.0 <= self.sigma < math.inf):
            raise InputError(
                "log-normal distribution",
                f"median {self.median}, sigma {self.sigma}",
                "Give a positive median and a sigma of 0 or more.",
            )

    def at(self, normal: float) -> float:
        """The value where a standard normal draw is `normal`."""
        return self.median * math.exp(self.sigma * normal)


class TokenBucket:
    """A limit per minute: full at the start, one minute's worth at most, refilled continuously.

    In any window of t seconds at most `capacity` + `rate` * t units are taken. A limit below one unit a minute still
    lets the bucket hold one.
    """

    __slots__ = ("_filled_s", "_level", "capacity", "rate")

    def __init__(self, per_minute: float) -> None:
        self.capacity = max(per_minute, 1.0)
        self.rate = per_minute / 60.0
        self._level = self.capacity
        self._filled_s = 0.0

    def missing_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; 0 if it is there now, infinite if it never fits."""
        if amount > self.capacity:
            return math.inf
        level = self._level + (now - self._filled_s) * self.rate
        self._level = level = min(level, self.capacity)
        self._filled_s = now
        return 0.0 if amount <= level else (amount - level) / self.rate

    def take(self, amount: float) -> None:
        """Take what `missing_s` has just said is there."""
        self._level -= amount


class CloudEndpoint(SlotServer):
    """One model of one provider.

    Service seconds: time to first token + `ttft_per_prompt_token_s` x uncached prompt tokens + (output - 1) / rate, all
    times `slowdown` (1.0; set it to make calls that start from then on slower). A job with `service_s` takes that long
    instead of the drawn time. `draws` are (time to first token, tokens per second).
    Limits, None for unlimited: `concurrency` calls at once; `rpm` requests and `tpm` tokens (whole prompt + output) per
    minute. A call beyond them leaves at once as `rejected` with `retry_after_s`, and takes nothing from the limits;
    with `queue_when_full` the provider lets calls beyond `concurrency` wait instead. A call larger than `tpm` is
    `oversized`. An outage (`set_up(False)`) ends calls in flight as `crashed`; the prompt cache survives it.
    """

    def __init__(
        self,
        env: Environment,
        name: str,
        *,
        ttft_s: LogNormal,
        tokens_per_s: LogNormal,
        draws: tuple[CommonDraws, CommonDraws],
        concurrency: int | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        queue_when_full: bool = False,
        ttft_per_prompt_token_s: float = 0.0,
        cache: PromptCache | None = None,
    ) -> None:
        super().__init__(env, concurrency, name=name)
        for field, value in (("rpm", rpm), ("tpm", tpm)):
            if value is not None and not 0.0 < value < math.inf:
                remedy = "Give a positive number, or null for no limit."
                raise InputError(f"endpoint '{name}': {field}", f"found {value}", remedy)
        if not 0.0 <= ttft_per_prompt_token_s < math.inf:
            raise InputError(
                f"endpoint '{name}': ttft_per_prompt_token_s", f"found {ttft_per_prompt_token_s}", "Give 0 s or more."
            )
        self.ttft_s, self.tokens_per_s = ttft_s, tokens_per_s
        self.ttft_per_prompt_token_s = ttft_per_prompt_token_s
        self.queue_when_full, self.cache = queue_when_full, cache
        self.slowdown = 1.0
        self._ttft_draws, self._rate_draws = draws
        self._requests = None if rpm is None else TokenBucket(rpm)
        self._tokens = None if tpm is None else TokenBucket(tpm)
        self._rate_limits = rpm is not None or tpm is not None

    def set_up(self, up: bool) -> None:
        """Start (False) or end (True) an outage."""
        if up:
            self.restart()
        else:
            self.crash()

    def submit(self, job: Job) -> Event:
        """Take the job or refuse it at once; returns `job.done`."""
        self._receive(job)
        if not self.up:
            return self._dismiss(job, UNAVAILABLE)
        tokens = job.prompt_tokens + job.output_tokens
        if self._tokens is not None and tokens > self._tokens.capacity:
            return self._dismiss(job, OVERSIZED)
        retry_after_s = self._rate_limited_s(tokens) if self._rate_limits else 0.0
        if self.running >= self.slots and not self.queue_when_full:
            retry_after_s = max(retry_after_s, self._next_finish_s())
        if retry_after_s > 0.0:
            job.retry_after_s = retry_after_s
            return self._dismiss(job, REJECTED)
        if self._requests is not None:
            self._requests.take(1.0)
        if self._tokens is not None:
            self._tokens.take(tokens)
        return self._enter(job)

    def estimate_wait_s(self) -> float:
        """The longest of: the line in front, one request's and one token's wait for the rate limits."""
        line_s = super().estimate_wait_s()
        return max(line_s, self._rate_limited_s(1.0)) if self._rate_limits else line_s

    def _rate_limited_s(self, tokens: float) -> float:
        wait_s = 0.0
        if self._requests is not None:
            wait_s = self._requests.missing_s(1.0, self.env.now)
        if self._tokens is not None:
            wait_s = max(wait_s, self._tokens.missing_s(tokens, self.env.now))
        return wait_s

    def _next_finish_s(self) -> float:
        """Seconds until the first call in flight ends; never 0, which would say that there is room."""
        now = self.env.now
        ends_s = min(timer.job.entry for timer in self._timers if timer.job is not None)
        return max(ends_s - now, 1e-3)

    def _service_s(self, job: Job) -> float:
        now = self.env.now
        if self.cache is not None:
            job.cached_tokens = self.cache.lookup(job.conversation, job.prompt_tokens, job.prefix_blocks, now)
        request, position = job.request, job.position
        ttft_s = self.ttft_s.at(self._ttft_draws.normal(request, position))
        if self.ttft_per_prompt_token_s:
            ttft_s += self.ttft_per_prompt_token_s * max(0, job.prompt_tokens - job.cached_tokens)
        service_s = ttft_s
        if job.output_tokens > 1:
            service_s += (job.output_tokens - 1) / self.tokens_per_s.at(self._rate_draws.normal(request, position))
        if job.service_s is not None:
            # The measured total counts; the drawn shape only splits it at the first token.
            ttft_s *= job.service_s / service_s
            service_s = job.service_s
        service_s *= self.slowdown
        if job.output_tokens > 0:
            job.first_token_s = now + ttft_s * self.slowdown
        job.entry = now + service_s
        return service_s

    def _finish(self, timer: ServiceTimer) -> None:
        job = timer.job
        if job is not None:
            if self.cache is not None:
                tokens = job.prompt_tokens + job.output_tokens
                self.cache.store(job.conversation, tokens, job.prefix_blocks, self.env.now)
            if job.first_token_s > self.env.now:  # rounding
                job.first_token_s = self.env.now
        super()._finish(timer)
