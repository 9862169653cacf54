"""What one attempt at a subtask carries, weighs on the network and leaves in its row."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from sim.bandwidth import BYTES_PER_S_PER_MBPS
from sim.network import Route
from sim.policies.base import Observation, Placement
from sim.server import OK, Job
from workloads.errors import InputError, suggest
from workloads.task import Attachment, Completion, ModelCall, with_attachments

if TYPE_CHECKING:
    from sim.tier import TierRuntime


class Plan:
    """What the attempts of one subtask hand on to each other.

    `tool_s`, `waited_s` (for a decision somebody outside had to take) and `decision_s` are booked to the first attempt and
    set to 0 after it.
    """

    __slots__ = (
        "attempts", "call", "decision_s", "escalation", "placement", "reason", "retry_after_s", "seen", "status", "tool_s",
        "waited_s",
    )  # fmt: skip

    def __init__(self, seen: Observation, placement: Placement, waited_s: float, usual_decision_s: float) -> None:
        call = seen.call
        self.seen, self.call, self.placement, self.reason = seen, call, placement, placement.reason
        self.escalation: Placement | None = None
        """Where it is to be done again."""
        self.tool_s, self.waited_s, self.decision_s = call.tool_s, waited_s, 0.0
        if placement.decided:
            self.decision_s = usual_decision_s if placement.decision_s is None else placement.decision_s
        self.attempts, self.status, self.retry_after_s = 0, OK, 0.0

    def escalate(self) -> None:
        """Go on where the policy wants it done again."""
        assert self.escalation is not None
        self.placement, self.reason, self.escalation = self.escalation, self.escalation.reason, None
        if self.placement.decided and self.placement.decision_s is not None:
            self.decision_s = self.placement.decision_s


def wrong_placement(placement: Any, tiers: Iterable[str]) -> InputError:
    """What is wrong with a policy's answer that names none of the tiers."""
    if not isinstance(placement, Placement):
        remedy = "place() returns a Placement, or an event that brings one"
        return InputError("policy", f"place() returned {placement!r}", remedy)
    problem = f"place() chose {placement.tier!r}, which is no tier"
    return InputError("policy", problem, suggest(str(placement.tier), tiers))


def attach(call: ModelCall, placement: Placement, tier: TierRuntime, held: Collection[str]) -> tuple[ModelCall, int]:
    """The call as the tier's model sees it, and the bytes of the attachments that travel for that.

    `held` names those the tier has from earlier turns: it sees them and nobody sends them again. A tier that sees no modalities
    gets none; to place some there is an error, except where the subtask failed over to it. Raises InputError for that, and for an
    attachment the task does not have.
    """
    attachments, wanted = call.task.attachments, placement.modalities
    if wanted:
        _check_modalities(wanted, attachments, tier, placement)
    if not tier.sees_modalities or (wanted == () and not held):
        return with_attachments(call, ()), 0
    seen = tuple([a for a in attachments if wanted is None or a.name in wanted or a.name in held])
    return with_attachments(call, seen), sum([a.size_bytes for a in seen if a.name not in held])


def _check_modalities(
    wanted: tuple[str, ...], attachments: tuple[Attachment, ...], tier: TierRuntime, placement: Placement
) -> None:
    names = [attachment.name for attachment in attachments]
    for name in wanted:
        if name not in names:
            remedy = suggest(str(name), names) if names else "The task has no attachments"
            raise InputError("policy", f"place() sends along {name!r}, which the task does not have", remedy)
    if not tier.sees_modalities and tier.name == placement.tier:
        problem = f"place() sends {', '.join(wanted)} to {tier.name!r}, whose model sees no modalities"
        raise InputError("policy", problem, f"Send none, or set tiers.{tier.name}.multimodal: true")


def service_marks(job: Job, answer: Completion, now: float, tells_first_token: bool) -> tuple[float, float, float]:
    """When service started, gave its first token and ended, as far as it got by `now`.

    A server that tells when the first token comes and did not, never came that far: all its service was prefill. One that
    knows service times only has the measured split of the answer, or none.
    """
    started = job.started_s if job.started_s <= now else now  # NaN compares false: never started
    first_token = job.first_token_s
    if first_token == first_token:
        first_token = first_token if first_token < now else now  # `min` takes several times as long
    elif tells_first_token:
        first_token = now
    elif answer.prefill_s == answer.prefill_s:
        first_token = min(started + answer.prefill_s, now)
    else:
        first_token = started
    return started, first_token if first_token > started else started, now


def answer_bytes(
    stream_bytes_per_token: float | None, answer: Completion, down: Route | None, job: Job
) -> tuple[float, float]:
    """Bytes of the answer on the wire, and those still to come when the last token is generated.

    While a streamed answer is generated its earlier tokens travel; only what the link could not carry in that time is
    left, at least the last token's own chunk.
    """
    if stream_bytes_per_token is None:
        return answer.download_bytes, answer.download_bytes
    tokens = answer.completion_tokens or 1
    total = answer.download_bytes + tokens * stream_bytes_per_token
    if down is None:
        return total, 0.0
    if job.first_token_s != job.first_token_s:  # nobody knows when it began, so nothing has travelled yet
        return total, total
    generating_s = job.finished_s - job.first_token_s
    return total, max(total / tokens, total - generating_s * (BYTES_PER_S_PER_MBPS * down.rate_mbps))
