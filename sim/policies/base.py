"""What a routing policy sees, what it answers, and what it may learn from beforehand.

A policy is one decision method, `place(seen) -> Placement`, plus optional state. It never sees a task's answer or latent
difficulty, and it imports neither the simulation nor Ray: the same object places subtasks in the simulator, on live models and
behind the gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from simpy import Event

from sim.cost import Charges
from sim.profiles import NonNegative, Strict
from sim.records import RequestRow, SubtaskRow
from workloads.agent import Agent
from workloads.backend import InferenceBackend
from workloads.task import Completion, ModelCall, Task


class Placement(NamedTuple):
    """Where a subtask runs, why, and which attachments go along (None = all that the tier's model takes).

    `decided` is False where an earlier decision of the same request is only repeated, which takes no decision time. `decision_s`
    is the time this decision took, s, where it differs from one to the next; None: the policy's option of that name.
    """

    tier: str
    reason: str = ""
    modalities: tuple[str, ...] | None = None
    decided: bool = True
    decision_s: float | None = None


class TierView(NamedTuple):
    """What a policy may know of a tier: its name, role (slm or llm), its model and the model's API prices per token."""

    name: str
    role: str
    model: str
    quality: float = 0.0
    input_usd: float = 0.0
    cached_input_usd: float = 0.0
    output_usd: float = 0.0
    multimodal: bool | None = None

    @property
    def sees_modalities(self) -> bool:
        """Whether its model takes attachments; where nobody says, models of role llm do."""
        return self.role == "llm" if self.multimodal is None else self.multimodal


class Signals(Protocol):
    """Measurements of the running system, possibly old: `age_s` says how old."""

    @property
    def age_s(self) -> float:
        """Seconds since the measurements were taken."""
        ...

    def wait_s(self, tier: str) -> float:
        """Expected time in the tier's queue."""
        ...

    def transfer_s(self, tier: str, upload_bytes: float, download_bytes: float, home: int = 0) -> float:
        """Expected time on the network from a home (`Observation.home`) to the tier and back."""
        ...

    def service_s(self, tier: str, prompt_tokens: int, completion_tokens: int) -> float:
        """Expected prefill and decode time on an idle server of the tier."""
        ...

    def cost_usd(self, attempt: SubtaskRow) -> float:
        """What an attempt has cost: every ledger item."""
        ...

    def energy_j(self, attempt: SubtaskRow) -> float:
        """What an attempt has drawn: device and radio energy."""
        ...

    def charges(self, attempt: SubtaskRow) -> Charges[float]:
        """The bill of an attempt, item by item."""
        ...


class Observation(NamedTuple):
    """A read-only view of one subtask at the moment of decision."""

    request: int
    call: ModelCall
    now_s: float
    arrival_s: float
    deadline_s: float
    tiers: tuple[TierView, ...]
    small: str
    large: str
    attempts: Sequence[SubtaskRow]
    signals: Signals
    home: int = 0

    @property
    def remaining_s(self) -> float:
        """Time left until the request's deadline (or the client's timeout, where there is no deadline)."""
        return self.arrival_s + self.deadline_s - self.now_s

    @property
    def spent_usd(self) -> float:
        """What the request has cost so far."""
        return sum(self.signals.cost_usd(attempt) for attempt in self.attempts)

    @property
    def spent_j(self) -> float:
        """Energy the request has drawn so far."""
        return sum(self.signals.energy_j(attempt) for attempt in self.attempts)


class Study(NamedTuple):
    """What a policy may learn from before the run: the workload, answered off line without time passing.

    A policy trained here must not be judged on what it saw: fit on some folds of `tasks`, place the others (out of fold).
    Oracles are the exception, and say so in their name.
    """

    tasks: Sequence[Task]
    agent: Agent
    backend: InferenceBackend
    tiers: tuple[TierView, ...]
    seed: int
    expected_cost_usd: Callable[[ModelCall, str, int], float]
    """(call, tier, completion tokens) -> nominal cost of the subtask there, without queueing or failures."""
    training: Study | None = None
    """Other requests, answered under every placement, where the scenario names a recording of them: nobody is judged on these."""
    expected_latency_s: Callable[[ModelCall, str, int], float] | None = None
    """(call, tier, completion tokens) -> mean seconds of the subtask there, without queueing or failures; None where nobody knows."""
    keeps_attachments: bool = False
    """Whether a tier keeps what was sent along for later turns."""


class PolicyOptions(Strict):
    """Options every policy has. A list given for an option is swept: one variant of the policy per value."""

    decision_s: NonNegative = 0.0
    """Time one decision takes on the user's side, s; charged to the request."""


class RoutingPolicy:
    """Base class: override `place`, and whatever else the policy needs."""

    Options: ClassVar[type[PolicyOptions]] = PolicyOptions
    knob: ClassVar[str | None] = None
    """The option whose sweep traces this family's cost-accuracy curve."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self, tiers: Sequence[TierView]) -> None:
        """Raise InputError for options that do not fit these tiers; called when the scenario is validated."""

    def prepare(self, study: Study) -> None:
        """Learn before the run; called once per simulated cell."""

    def start(self, request: int, task: Task) -> None:
        """A request has arrived."""

    def place(self, seen: Observation) -> Placement | Event:
        """Decide where the subtask runs.

        Ordinary policies answer at once. One whose decision comes from outside, such as a learning environment, returns a SimPy
        event that happens with the Placement as its value; the request waits for it.
        """
        raise NotImplementedError

    def review(self, seen: Observation, placement: Placement, answer: Completion) -> Placement | None:
        """An answer is there: None takes it; a Placement on another tier has the subtask done again, as cascades do.

        The answer given up has been paid for and stays in the records with status `escalated`.
        """
        del seen, placement, answer
        return None

    def learn(self, row: RequestRow) -> None:
        """A request has ended."""
