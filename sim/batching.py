"""A model server with iteration-level continuous batching, simulated without an event per token.

The discipline is that of Orca (G.-I. Yu et al., OSDI 2022) and vLLM (W. Kwon et al., SOSP 2023, default scheduler
without chunked prefill). Time passes in iterations, and everything happens at their ends:

- Waiting jobs are admitted in line order while the batch has room and the job's whole reservation (prompt + output
  tokens) fits into the key-value memory. If the head of the line does not fit, nobody overtakes it.
- Newly admitted prompts are prefilled together in one iteration, during which running sequences stand still. It
  yields the first token of each. At least one token per prompt is computed, even if the prompt is fully cached.
- Otherwise every running sequence gets one token. A sequence of n output tokens takes n - 1 decode iterations after
  its prefill; with n = 0 or 1 it leaves at the end of the prefill (with 0 it never has a first token).
- An arrival during an iteration waits for its end; one at the very instant of a decode iteration's end is admitted
  then. A job that meets an idle server starts at once, alone; others of the same instant are prefilled after it.
- A cancelled job that is running leaves at the end of the iteration, as its memory cannot be freed earlier.
- A crash takes effect at once, in the middle of an iteration, and empties the prompt cache.
- A job larger than the whole key-value memory leaves at once as `oversized`.
- With a `call_overhead_s` a job joins the line that much later: what lies around the engine (RPC, reading the text) takes
  time but no place in the batch. What follows the last token is counted here too, as only the sum is known.

Coalescing: between two arrivals or finishes only decode iterations happen, whose total has a closed form
(`StepModel.decode_span_s`). So the server sleeps until the next finish; an arrival that can be admitted wakes it at the
end of the iteration in progress.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heappop, heappush

from simpy import Environment, Event
from simpy.events import EventPriority

from sim.environment import fire
from sim.job import CANCELLED, CRASHED, OK, OVERSIZED, RUNNING, UNAVAILABLE, WAITING, Job
from sim.prompt_cache import PromptCache
from sim.reception import Reception
from sim.server import BaseServer
from sim.step_model import StepModel
from workloads.errors import InputError

_AFTER_ARRIVALS = EventPriority(2)
"""Wake-ups come after all ordinary events of the same instant, so that simultaneous arrivals are seen together."""


class BatchingServer(BaseServer):
    """One replica of a model on one device. `kv_capacity_tokens` overrides the model's; see the module for the rules.

    With a `cache`, the cached part of a prompt is looked up at admission and the conversation stored at the finish;
    the cache's memory is its own and does not reduce the capacity for running sequences.
    """

    def __init__(
        self,
        env: Environment,
        roofline: StepModel,
        *,
        max_batch: int,
        discipline: str = "fifo",
        kv_capacity_tokens: int | None = None,
        cache: PromptCache | None = None,
        name: str = "device",
    ) -> None:
        super().__init__(env, name, discipline)
        if max_batch < 1:
            raise InputError(f"server '{name}': max_batch", f"found {max_batch}", "Give at least 1.")
        if kv_capacity_tokens is not None and kv_capacity_tokens < 1:
            raise InputError(f"server '{name}': kv_capacity_tokens", f"found {kv_capacity_tokens}", "Give at least 1.")
        self.roofline, self.max_batch, self.cache = roofline, max_batch, cache
        self._reception = Reception(env, roofline.call_overhead_s, self._join_line)
        capacity = roofline.kv_capacity_tokens if kv_capacity_tokens is None else kv_capacity_tokens
        self.kv_capacity_tokens: float = math.inf if capacity is None else capacity
        self._on_wake = [self._wake]  # shared by all timers: SimPy only reads it
        self._spare: list[Event] = []  # timers that have rung, for reuse
        self._overtaking = discipline != "fifo"
        self._busy_s = self._share_s = 0.0  # up to the last settlement: busy time, and the integral of dt / batch
        self._served, self._stay_s = 0, 0.0
        self._step = 0  # decode iterations done since the start
        self._empty()

    def _empty(self) -> None:
        """Nobody here, nothing planned."""
        self.running = 0
        self._finishing: list[tuple[int, int, Job]] = []  # heap of (decode step at which it is done, order, job)
        self._leaving: list[Job] = []  # cancelled while running, to be removed at the end of the iteration
        self._order = 0
        self._kv_tokens = self._reserved_tokens = 0
        self._timer: Event | None = None  # the one wake-up that counts; all others in SimPy's queue are stale
        self._planned_steps = 0  # decode iterations done when it rings
        self._span_start_s = self._settled_s = self._wake_s = self.env.now

    @property
    def busy_s(self) -> float:
        """Seconds with at least one job in the batch."""
        return self._busy_s + (self.env.now - self._settled_s if self.running else 0.0)

    def submit(self, job: Job) -> Event:
        """Take the job; returns `job.done`."""
        self._receive(job)
        if not self.up:
            return self._dismiss(job, UNAVAILABLE)
        if job.prompt_tokens + job.output_tokens > self.kv_capacity_tokens:
            return self._dismiss(job, OVERSIZED)
        job.status = WAITING
        self.queue_length += 1
        self._reception.enter(job)
        return job.done

    def _join_line(self, job: Job) -> None:
        self._line.push(job)
        if self._timer is None:
            self._settled_s = self.env.now
            self._continue(self._settled_s)
        elif self.running < self.max_batch and (self._overtaking or self.queue_length - len(self._reception) == 1):
            # With several in a first-in-first-out line the end of the iteration is already planned, or the head
            # waits for memory, which only a finish frees.
            self._plan_end_of_iteration()

    def cancel(self, job: Job) -> None:
        """Take the job back: at once if it waits, at the end of the iteration if it runs."""
        if job.status == WAITING:
            self.queue_length -= 1
            self._reception.leave(job)
            self._dismiss(job, CANCELLED)
            if self._timer is not None and self.running < self.max_batch:
                self._plan_end_of_iteration()  # the one behind may fit where this one did not
        elif job.status == RUNNING:
            job.status = CANCELLED
            self._leaving.append(job)
            self._plan_end_of_iteration()
            # The rest of the iteration is sure to be charged, so the caller need not wait for `done` to know it.
            job.device_s = self._share_s + (self._wake_s - self._settled_s) / self.running - job.entry

    def crash(self) -> None:
        """Go down: jobs here leave as `crashed`, later ones as `unavailable`; the prompt cache is lost."""
        self.up = False
        now = self.env.now
        self._settle(now)
        for _, _, job in sorted(self._finishing):
            if job.ticket is None:  # cancelled and gone; its entry would have been dropped when it came up
                continue
            if job.first_token_s > now:
                job.first_token_s = math.nan
            status = CANCELLED if job.status == CANCELLED else CRASHED
            self._depart(job, status, now)
            job.done.succeed(job)
        for job in self._reception.empty():
            self._dismiss(job, CRASHED)
        self._dismiss_waiting(CRASHED)
        self._empty()
        if self.cache is not None:
            self.cache.clear()

    def estimate_wait_s(self) -> float:
        """To the next iteration while there is room; else jobs ahead x mean stay so far / jobs in the batch."""
        if not self.running:
            return 0.0
        if self.running + self.queue_length < self.max_batch and not self.queue_length:
            prefill_left_s = self._span_start_s - self.env.now
            return max(prefill_left_s, 0.5 * self.roofline.decode_step_s(self.running, self._kv_tokens))
        mean_stay_s = self._stay_s / self._served if self._served else 0.0
        return (self.queue_length + 1) * mean_stay_s / self.running

    def _plan(self, delay_s: float, steps: int) -> None:
        """Wake after `delay_s`, when `steps` decode iterations of the present span are done."""
        if self._spare:
            timer = self._spare.pop()
        else:
            timer = Event(self.env)
            timer._ok, timer._value = True, None
        timer.callbacks = self._on_wake  # type: ignore[assignment]
        self._timer = timer
        self._planned_steps = steps
        self._wake_s = self.env.now + delay_s
        self.env.schedule(timer, _AFTER_ARRIVALS, delay_s if delay_s > 0.0 else 0.0)

    def _plan_end_of_iteration(self) -> None:
        if not self._planned_steps:  # asleep until the end of this very iteration, a prefill
            return
        elapsed_s = self.env.now - self._span_start_s
        if elapsed_s <= 0.0:
            self._plan(-elapsed_s, 0)
            return
        steps, span_s = self.roofline.steps_to_reach(self.running, self._kv_tokens, elapsed_s)
        if steps < self._planned_steps:
            self._plan(span_s - elapsed_s, steps)

    def _settle(self, now: float) -> None:
        """Bring busy time and shares up to `now`; the batch has not changed since the last time."""
        if self.running:
            passed_s = now - self._settled_s
            self._busy_s += passed_s
            self._share_s += passed_s / self.running
        self._settled_s = now

    def _wake(self, timer: Event) -> None:
        """The end of an iteration: let finished jobs go, admit waiting ones, plan the next end that matters."""
        self._spare.append(timer)
        if timer is not self._timer:
            return
        now = self.env.now
        self._settle(now)
        steps = self._planned_steps
        self._step += steps
        self._kv_tokens += steps * self.running
        departed: Sequence[Job] = ()
        if self._leaving or self._finishing[0][0] <= self._step:
            departed = self._remove_finished(now)
        self._continue(now)
        # Last, when the server is consistent again: callbacks may submit or cancel at once.
        for job in departed:
            fire(job.done, job)

    def _continue(self, now: float) -> None:
        """Between two iterations: admit waiting jobs and plan the next end of an iteration that matters."""
        heap = self._finishing
        until_s = self._admit(now) if self.queue_length and self.running < self.max_batch else 0.0
        self._span_start_s = now + until_s
        if heap:
            steps = heap[0][0] - self._step
            if steps:
                until_s += self.roofline.decode_span_s(self.running, self._kv_tokens, steps)
            self._plan(until_s, steps)
        else:
            self._timer = None

    def _remove_finished(self, now: float) -> list[Job]:
        departed, self._leaving = self._leaving, []
        for job in departed:
            self._depart(job, CANCELLED, now)
        heap = self._finishing
        while heap and (heap[0][0] <= self._step or heap[0][2].status != RUNNING):
            job = heappop(heap)[2]
            if job.status == RUNNING:
                self._depart(job, OK, now)
                self._served += 1
                self._stay_s += now - job.started_s
                if self.cache is not None:
                    tokens = job.prompt_tokens + job.output_tokens
                    self.cache.store(job.conversation, tokens, job.prefix_blocks, now)
                departed.append(job)
        return departed

    def _depart(self, job: Job, status: str, now: float) -> None:
        """Free what the job held."""
        job.status = status
        job.finished_s = now
        job.device_s = self._share_s - job.entry
        if job.first_token_s > now:  # rounding: the wake-up came a hair early
            job.first_token_s = now
        self.running -= 1
        self._kv_tokens -= job.prompt_tokens + self._step - job.ticket
        job.ticket = None
        self._reserved_tokens -= job.prompt_tokens + job.output_tokens

    def _admit(self, now: float) -> float:
        """Move waiting jobs into the batch; returns the seconds of their common prefill, 0 if nobody fits."""
        line, cache = self._line, self.cache
        tokens, context, pairs = 0, 0, 0.0
        admitted: list[Job] = []
        while self.running < self.max_batch and (job := line.head()) is not None:
            reservation = job.prompt_tokens + job.output_tokens
            if self._reserved_tokens + reservation > self.kv_capacity_tokens:
                break
            line.pop()
            cached = job.cached_tokens
            if cache is not None:
                cached = cache.lookup(job.conversation, job.prompt_tokens, job.prefix_blocks, now)
                job.cached_tokens = cached
            new = job.prompt_tokens - cached
            if new < 1:
                new = 1
            tokens += new
            context += cached
            pairs += new * (cached + 0.5 * (new + 1))
            job.status = RUNNING
            job.started_s = now
            job.entry = self._share_s
            job.ticket = self._step
            self.queue_length -= 1
            self.running += 1
            self._reserved_tokens += reservation
            self._kv_tokens += job.prompt_tokens
            self._order += 1
            after = job.output_tokens - 1
            heappush(self._finishing, (self._step + after if after > 0 else self._step, self._order, job))
            admitted.append(job)
        if not admitted:
            return 0.0
        prefill_s = self.roofline.prefill_many_s(tokens, context, pairs, len(admitted))
        first_token_s = now + prefill_s
        for job in admitted:
            if job.output_tokens > 0:
                job.first_token_s = first_token_s
        return prefill_s
