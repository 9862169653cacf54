"""The life of one request: ask the policy, send, queue, be served, receive, record; again until the agent is done.

Each request is one SimPy process, and so is each branch where its agent forks (branches.py). Every wait it makes is booked to one
column of the attempt's row, so the columns of a row add up to its duration even when the wait was cut short by a timeout.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

from simpy import Event, Interrupt, Process

from sim.attempt import Plan, answer_bytes, attach, service_marks
from sim.branches import ABANDONED, Branches, GivenUp, check_positions, raise_failure
from sim.job import ESCALATED
from sim.policies.base import Observation
from sim.records import RequestRow, SubtaskRow
from sim.server import OK, OVERSIZED, Job
from sim.tier import TierRuntime
from sim.world import World
from workloads.agent import Branch, Run
from workloads.backend import cancel
from workloads.errors import ModelUnavailable
from workloads.task import Completion, ModelCall, Outcome, Task, fast_constructor, worst_provenance

Waits = Generator[Event, Any, Any]

_observation = fast_constructor(Observation)
_subtask_row = fast_constructor(SubtaskRow)
_NO_ANSWER, _NO_JOB = Completion("", "", 0, 0, 0, provenance=""), Job(0, 0)
"""What an attempt has to show for itself that ended before it was served."""
_TOO_LONG = (OVERSIZED, "live-prompt-too-long")
_ENDED = ("timeout", ABANDONED)
"""Ends of an attempt that end all of its branch, too."""


class RequestProcess:
    """State of one request under way; `run` is the SimPy process."""

    __slots__ = (
        "arrival_s", "attempts", "forked", "held", "home", "index", "process", "provenance", "task", "ttft_s", "world",
    )  # fmt: skip

    def __init__(self, world: World, index: int, task: Task, home: int) -> None:
        self.world, self.index, self.task, self.home = world, index, task, home
        self.attempts: list[SubtaskRow] = []
        self.held: dict[int, list[str]] = {}  # attachments that tiers have from earlier turns, where they keep them
        self.forked = False
        self.provenance = ""  # nobody has answered yet
        self.ttft_s = math.nan
        self.arrival_s = world.env.now
        world.under_way += 1
        self.process: Process = world.env.process(self.run())
        self.process.callbacks.append(raise_failure)

    def run(self) -> Waits:
        """From arrival to the request's row."""
        world = self.world
        env = world.env
        self.arrival_s = env.now
        entry = world.watchdog.watch(self.process)
        world.policy.start(self.index, self.task)
        status, reason, score = "completed", "", 0.0
        try:
            outcome: Outcome = yield from self._answered(world.agent(self.task))
            score = outcome.score
        except Interrupt as interrupt:
            status, reason = "timeout", str(interrupt.cause)
        except GivenUp as failure:
            status, reason = "failed", str(failure)
        entry.clear()
        self._finish(status, reason, score)

    def _answered(self, run: Run) -> Waits:
        """See an agent, or one branch of it, through to its end; returns its Outcome."""
        try:
            step = next(run)
            while True:
                if type(step) is ModelCall:  # the path of every subtask, and isinstance takes longer
                    answer = yield from self._subtask(step)
                else:
                    self.forked = True
                    most = self.world.client.max_branches
                    answer = yield from Branches(self.world.env, step, self.branch, most).joined()
                step = run.send(answer)
        except StopIteration as done:
            outcome: Outcome = done.value
        if outcome.tool_s:
            yield from self._last_tool(outcome.tool_s)
        return outcome

    def branch(self, branch: Branch) -> Waits:
        """One branch of a fork: a single call or a run of its own; returns its Completion or Outcome."""
        return (yield from self._subtask(branch) if isinstance(branch, ModelCall) else self._answered(branch))

    def _finish(self, status: str, reason: str, score: float) -> None:
        world = self.world
        if self.forked:
            check_positions(self.task, self.attempts)
        served = small = 0
        for attempt in self.attempts:
            if attempt.status == OK and attempt.tier >= 0:
                served += 1
                small += world.views[attempt.tier].role == "slm"
        row = RequestRow(
            self.index, self.task.id, self.task.family, self.home, self.arrival_s, world.env.now, self.ttft_s, served,
            small, score, status, reason, self.provenance,
        )  # fmt: skip
        world.request_rows.append(row)
        world.under_way -= 1
        world.policy.learn(row)
        if world.on_end is not None:
            world.on_end(row)
        if world.idle is not None and not world.under_way:
            world.idle.succeed()

    def _subtask(self, call: ModelCall) -> Waits:
        """Place one subtask and see it through, whatever it takes; returns its Completion or raises GivenUp."""
        world = self.world
        env = world.env
        begun_s, waited_s = env.now, 0.0
        try:
            if call.tool_s:
                yield env.timeout(call.tool_s)
            asked_s = env.now
            seen = _observation((
                self.index, call, asked_s, self.arrival_s, world.deadline_s, world.views, world.small, world.large,
                self.attempts, world.signals, self.home,
            ))  # fmt: skip
            placement = world.policy.place(seen)
            if isinstance(placement, Event):  # a pending decision: someone outside steps the simulation
                placement = yield placement
                waited_s = env.now - asked_s
        except Interrupt as interrupt:
            self._record_unplaced(call.position, begun_s, call.tool_s, str(interrupt.cause))
            raise
        plan = Plan(seen, world.checked(placement), waited_s, world.decision_s)
        while True:
            completion = yield from self._placed(plan)
            if completion is not None:
                return completion
            plan.escalate()

    def _placed(self, plan: Plan) -> Waits:
        """Have the subtask done where it is placed, or where that fails over to; None if it is to be done again elsewhere."""
        world = self.world
        for tier in world.ladders[plan.placement.tier]:
            for retry in world.tries:
                completion = yield from self._attempt(plan, tier, retry)
                if completion is not None or plan.escalation is not None:
                    return completion
                if plan.status in _TOO_LONG:
                    break  # no retry makes it fit
            plan.reason = f"fail-over from {tier.name}: {plan.status}"
        raise GivenUp(f"{plan.status} at {tier.name} after {plan.attempts} attempts of subtask {plan.call.position}")

    def _last_tool(self, tool_s: float) -> Waits:
        """The tool call after the last answer, of all or of one branch: the position after a branch's last is another's."""
        begun_s, status = self.world.env.now, OK
        env, numbers = self.world.env, [attempt.position for attempt in self.attempts]
        try:
            yield self.world.env.timeout(tool_s)
        except Interrupt as interrupt:
            status = str(interrupt.cause)
            raise
        finally:
            in_branch = env.active_process is not self.process
            position = min(0, *numbers) - 1 if in_branch else max(numbers, default=-1) + 1
            self._record_unplaced(position, begun_s, tool_s, status)

    def _attempt(self, plan: Plan, tier: TierRuntime, retry: int) -> Waits:
        """One try on one tier; writes one row and returns the Completion, or None when it failed.

        `marks` holds the time at which each phase ended; a phase cut short by an interrupt ends at the interrupt, and those
        after it take no time, so the phases always add up to the attempt's duration.
        """
        world, call = self.world, plan.call
        env = world.env
        marks = [env.now]
        answer, job = _NO_ANSWER, _NO_JOB
        entry = route = transfer = handle = (
            None  # a transfer under way and the route it takes; an answer nobody has yet
        )
        upload_bytes = download_bytes = 0.0
        try:
            if retry:
                yield env.timeout(self._backoff_s(plan, retry))
            plan.retry_after_s = 0.0  # respected by now; what comes next may fail for another reason
            marks.append(env.now)
            if plan.decision_s:
                yield env.timeout(plan.decision_s)
            marks.append(env.now)
            if world.attempt_watchdog is not None:
                entry = world.attempt_watchdog.watch(env.active_process or self.process)
            attached_bytes = 0
            if call.task.attachments or plan.placement.modalities:
                call, attached_bytes = attach(call, plan.placement, tier, self.held.get(tier.index, ()))
            handle = world.backend.submit(call, tier.model_name)
            up, down = tier.routes(self.home)
            upload_bytes = call.upload_bytes + attached_bytes
            if up is not None:
                route, transfer = up, up.transfer(upload_bytes, self.index, call.position)
                yield transfer
                route = None
            marks.append(env.now)
            answer, handle = handle.result(), None
            job = tier.job(answer, call, self.index)
            yield tier.fleet.submit(job)
            del job.done  # the event holds the job: without this, only a garbage collection would free the two
            marks += service_marks(job, answer, env.now, tier.tells_first_token)
            plan.status, plan.retry_after_s = job.status, job.retry_after_s
            if job.status == OK:
                if call.attachments and world.client.keep_attachments:
                    self.held[tier.index] = [attachment.name for attachment in call.attachments]
                download_bytes, tail_bytes = answer_bytes(world.stream_bytes_per_token, answer, down, job)
                if down is not None:
                    route, transfer = down, down.transfer(tail_bytes, self.index, call.position)
                    yield transfer
                    route = None
                if world.reviews:
                    escalation = world.policy.review(plan.seen, plan.placement, answer)
                    if escalation is not None:
                        plan.escalation, plan.status = world.checked(escalation), ESCALATED
        except ModelUnavailable as failure:  # a live model: it fails when it is asked, in no virtual time
            plan.status, plan.retry_after_s = f"live-{failure.reason}", failure.retry_after_s
        except Interrupt as interrupt:
            plan.status = str(interrupt.cause)
            if handle is not None:
                cancel(handle)
            if route is not None and transfer is not None:
                route.cancel(transfer)
            elif job is not _NO_JOB:
                tier.fleet.cancel(job)
                marks += service_marks(job, answer, env.now, tier.tells_first_token)
        if entry is not None:
            entry.clear()
        while len(marks) < 8:
            marks.append(env.now)
        self._record(plan, tier, marks, answer, job, upload_bytes, download_bytes)
        if plan.status in _ENDED:
            raise Interrupt(plan.status)
        return answer if plan.status == OK else None

    def _record(
        self, plan: Plan, tier: TierRuntime, marks: list[float], answer: Completion, job: Job,
        upload_bytes: float, download_bytes: float,
    ) -> None:  # fmt: skip
        begun, backed_off, decided, uploaded, started, first_token, finished, ended = marks
        ttft_s = math.nan
        if plan.status == OK:
            # Unstreamed answers arrive whole; streamed ones need the network's delay for the first token only.
            first_s = first_token + (ended - finished) if self.world.stream_bytes_per_token is not None else ended
            ttft_s = first_s - begun + plan.tool_s + plan.waited_s
            if not self.ttft_s <= first_s - self.arrival_s:  # NaN: nothing came yet
                self.ttft_s = first_s - self.arrival_s
            if answer.provenance != self.provenance:
                known = self.provenance or answer.provenance
                self.provenance = worst_provenance(known, answer.provenance)
        row = _subtask_row((
            self.index, plan.call.position, plan.attempts, tier.index, job.replica, plan.status, answer.provenance, begun - plan.tool_s - plan.waited_s, backed_off - begun, plan.tool_s,
            decided - backed_off + plan.waited_s, uploaded - decided, started - uploaded, first_token - started, finished - first_token, ended - finished, ended,
            ttft_s, job.device_s, answer.prompt_tokens, job.cached_tokens, answer.completion_tokens, upload_bytes, download_bytes, plan.reason, answer.score,
        ))  # fmt: skip
        self.attempts.append(row)
        self.world.subtask_rows.append(row)
        plan.attempts += 1
        plan.tool_s = plan.waited_s = plan.decision_s = 0.0  # paid once, not again by a retry

    def _record_unplaced(self, position: int, begun_s: float, tool_s: float, status: str) -> None:
        """A row for time that belongs to no attempt: a tool or a decision cut short, or the tool call that ends a request."""
        ended_s = self.world.env.now
        tool_s = min(tool_s, ended_s - begun_s)
        row = SubtaskRow(
            self.index, position, 0, -1, 0, status, "", begun_s, 0.0, tool_s, ended_s - begun_s - tool_s,
            0.0, 0.0, 0.0, 0.0, 0.0, ended_s, math.nan, 0.0, 0, 0, 0, 0.0, 0.0, "",
        )  # fmt: skip
        self.attempts.append(row)
        self.world.subtask_rows.append(row)

    def _backoff_s(self, plan: Plan, retry: int) -> float:
        """Exponential backoff with full jitter; at least the server's Retry-After."""
        client = self.world.client
        longest = min(client.backoff_max_s, client.backoff_s * 2.0 ** min(retry - 1, 1000))
        drawn = longest * self.world.backoff_draws.uniform(self.index, plan.call.position + plan.attempts)
        return max(drawn, plan.retry_after_s)
