"""Small real studies to try policies on, and the contract that every policy keeps."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from sim.cost import Charges
from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study, TierView
from sim.policies.features import small_and_large
from sim.records import SubtaskRow
from workloads.agent import conversation_agent, in_turn
from workloads.backend import InferenceBackend, ScriptedBackend
from workloads.dialogue import dialogue_agent
from workloads.dialogue_truth import DialogueBackend
from workloads.modelled import ModelledWorkload, TokenModel, modelled_tasks
from workloads.task import Attachment, Completion, ModelCall, Task, with_attachments
from workloads.tasks.dialogues import DialogueSpec, dialogue_tasks

TIERS = (TierView("edge", "slm", "tiny", 0.0), TierView("cloud", "llm", "huge", 1.0, 1e-6, 1e-7, 4e-6))

TRAINED = {
    "hybrid-llm",
    "similarity-weighted",
    "matrix-factorisation",
    "frugal-cascade",
    "hera",
    "tmo-table",
    "tmo-greedy",
}
"""These learn from other requests; without any they cannot be prepared."""
MADE_FOR_ONE = {"tmo"}
"""Runs weights that fit the actions of one scenario only: tests/tmo/test_learned.py tries it there."""

Decisions = Mapping[tuple[int, int], Placement]
"""What a policy answered, by (request, position)."""


class IdleSignals:
    """Signals of a system in which nothing waits and everything has its plain price."""

    age_s = 0.0

    def wait_s(self, tier: str) -> float:
        return 0.0

    def transfer_s(self, tier: str, upload_bytes: float, download_bytes: float, home: int = 0) -> float:
        return 0.01 if tier == "edge" else 0.1

    def service_s(self, tier: str, prompt_tokens: int, completion_tokens: int) -> float:
        return 0.01 * completion_tokens

    def cost_usd(self, attempt: SubtaskRow) -> float:
        return 1e-6 * attempt.completion_tokens

    def energy_j(self, attempt: SubtaskRow) -> float:
        return 0.5 * attempt.completion_tokens

    def charges(self, attempt: SubtaskRow) -> Charges[float]:
        return Charges(0.0, 0.0, self.cost_usd(attempt), 0.0, 0.0, 0.0, 0.0, self.energy_j(attempt), 0.0)


class Forbidden:
    """Stands where a policy must not look: whatever is done with it fails."""

    def _refuse(self, *anything: object) -> NoReturn:
        raise AssertionError("a policy read what no policy may see")

    __getattr__ = __eq__ = __bool__ = __str__ = __repr__ = __float__ = __iter__ = __len__ = __lt__ = __getitem__ = (
        _refuse
    )
    __hash__ = _refuse


def nominal_cost_usd(call: ModelCall, tier: str, completion_tokens: int) -> float:
    """The nominal cost in these studies: the large tier costs twenty times the small one."""
    return (call.prompt_tokens + 4 * completion_tokens) * (1e-6 if tier == "cloud" else 5e-8)


def study_of(tasks: Sequence[Task], agent: Any, backend: InferenceBackend, seed: int = 3) -> Study:
    """A study on the two tiers above."""
    return Study(tasks, agent, backend, TIERS, seed, nominal_cost_usd)


def modelled_study(count: int = 30, seed: int = 3, max_subtasks: int = 7) -> Study:
    """Statistical tasks: sizes but no text."""
    sizes = TokenModel(mean_subtasks=4.5, max_subtasks=max_subtasks)
    workload = ModelledWorkload({"tiny": 0.0, "huge": 1.0}, sizes)
    tasks = list(modelled_tasks(count, np.random.default_rng(seed), tokens=sizes))
    return study_of(tasks, workload.agent, workload, seed)


def text_study(count: int = 24) -> Study:
    """Tasks with text, the longer half of which the small model gets wrong; it also needs one step more."""
    tasks = [
        Task(
            f"t{i}",
            prompt=f"What is {i} plus {i}?" if i % 2 else f"A farmer has {i} hens. " * 3 + "How many legs are there?",
            answer=str(2 * i),
            family="sums" if i % 2 else "farm",
            attachments=(Attachment("photo", 20_000, 85, 0.4),) if i % 3 else (),
        )
        for i in range(count)
    ]

    def answer(call: ModelCall, model: str) -> Completion:
        last = call.position >= (2 if model == "tiny" else 1)
        right = model == "huge" or "plus" in call.task.prompt
        tool = None if last else "go on"
        return Completion(model, "step", call.prompt_tokens, 7, 60, tool_text=tool, score=float(right))

    return study_of(tasks, conversation_agent(), ScriptedBackend(answer))


def dialogue_study(count: int = 24, seed: int = 3, spec: DialogueSpec | None = None) -> Study:
    """Generated dialogues, and others of the kind to learn from."""
    backend = DialogueBackend({"tiny": 0.0, "huge": 1.0}, frozenset({"huge"}))
    own, others = (
        list(dialogue_tasks(count, np.random.default_rng([seed, number]), spec, name))
        for number, name in enumerate(("own", "other"))
    )
    study = study_of(own, dialogue_agent(), backend, seed)
    return study._replace(training=study._replace(tasks=others))


def observation(
    call: ModelCall, request: int = 0, tiers: tuple[TierView, ...] = TIERS, attempts: Sequence[SubtaskRow] = ()
) -> Observation:
    """What a policy would see of this call in an idle system."""
    small, large = small_and_large(tiers)
    return Observation(request, call, 1.0, 0.0, 60.0, tiers, small.name, large.name, attempts, IdleSignals())


def placed(policy: RoutingPolicy, seen: Observation) -> Placement:
    """The policy's answer, which must be there at once: nobody steps these studies from outside."""
    placement = policy.place(seen)
    assert isinstance(placement, Placement), f"{placement!r} is not a Placement"
    return placement


def decisions(
    policy: RoutingPolicy, study: Study, requests: Iterable[int] | None = None, *, blindfold: bool = True
) -> Decisions:
    """Run request i on task i (wrapping round) under a prepared policy, one after the other in the given order."""
    model_of = {tier.name: tier.model for tier in study.tiers}
    made: dict[tuple[int, int], Placement] = {}
    for request in range(len(study.tasks)) if requests is None else requests:
        task = study.tasks[request % len(study.tasks)]
        shown = replace(task, answer=Forbidden(), latent=Forbidden()) if blindfold else task  # type: ignore[arg-type]
        policy.start(request, shown)
        run = in_turn(study.agent(task))
        call = next(run)
        attempts: list[SubtaskRow] = []
        while True:
            placement = placed(policy, observation(call._replace(task=shown), request, study.tiers, tuple(attempts)))
            assert placement.tier in model_of, f"{placement.tier!r} is not a tier"
            made[request, call.position] = placement
            sent = call
            if placement.modalities is not None and task.attachments:
                names = [attachment.name for attachment in task.attachments]
                assert set(placement.modalities) <= set(names), f"{placement.modalities!r} are not all attachments"
                sent = with_attachments(call, tuple(a for a in task.attachments if a.name in placement.modalities))
            completion = study.backend.submit(sent, model_of[placement.tier]).result()
            attempts.append(_row(request, call, list(model_of).index(placement.tier), completion))
            try:
                call = run.send(completion)
            except StopIteration:
                break
    return made


def _row(request: int, call: ModelCall, index: int, completion: Completion) -> SubtaskRow:
    return SubtaskRow(
        request, call.position, 0, index, 0, "ok", completion.provenance, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0,
        1.0, 0.5, 1.0, call.prompt_tokens, 0, completion.completion_tokens, float(call.upload_bytes),
        float(completion.download_bytes), "",
    )  # fmt: skip


def prepared(policy_type: type[RoutingPolicy], study: Study, **options: Any) -> RoutingPolicy:
    """A policy with these options that has prepared for the study."""
    policy = policy_type(policy_type.Options(**options))
    policy.prepare(study)
    return policy


def check_options(policy_type: type[RoutingPolicy]) -> None:
    """A policy says what it does and documents its options, all of which have defaults."""
    assert inspect.getdoc(policy_type), "a policy needs a docstring"
    assert policy_type.__doc__ != RoutingPolicy.__doc__
    assert issubclass(policy_type.Options, PolicyOptions)
    assert policy_type.Options() == policy_type.Options.model_validate({})
    properties = policy_type.Options.model_json_schema()["properties"]
    assert "decision_s" in properties
    for name, schema in properties.items():
        assert schema.get("description"), f"option {name!r} has no docstring"
        assert "default" in schema, f"option {name!r} has no default"
    assert policy_type.knob is None or policy_type.knob in properties


def check_decisions(policy_type: type[RoutingPolicy], study: Study) -> None:
    """A policy places every subtask on a tier that exists, from what it may see, the same way every time and in any order."""
    count = len(study.tasks)
    first = decisions(prepared(policy_type, study), study, range(count + 3))
    assert {request for request, _ in first} == set(range(count + 3))
    again = decisions(prepared(policy_type, study), study, range(count + 3))
    assert again == first, "the same seed must give the same placements"
    backwards = decisions(prepared(policy_type, study), study, reversed(range(count + 3)))
    assert backwards == first, "a request's placement must not depend on which request was asked before"
