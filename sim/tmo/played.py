"""Dialogues played without time: what a log like M4A1's says of a policy, on any dialogues whose answers are at hand.

Two models stand for local and cloud; the cloud sees what an action uploads. Nothing here knows time or money, so a log of this kind
holds no latency and no usage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sim.tmo.logged import FloatArray, Layout, LoggedTurns
from sim.tmo.turn_policies import TurnPolicy
from workloads.agent import in_turn
from workloads.backend import InferenceBackend
from workloads.dialogue import dialogue_agent, turn_of, turns_of
from workloads.errors import InputError
from workloads.task import Completion, ModelCall, Task, with_attachments


class Played(NamedTuple):
    """A log, and the response of every action in each of its states, (n, actions); None where nobody asked for it."""

    turns: LoggedTurns
    every: FloatArray | None


def layout_of(tasks: Sequence[Task]) -> Layout:
    """The actions and task kinds of dialogues. Raises InputError where they differ in their number of attachments."""
    images = len(tasks[0].attachments)
    for task in tasks:
        if len(task.attachments) != images:
            problem = f"has {len(task.attachments)} attachments, {tasks[0].id!r} has {images}"
            raise InputError(
                f"task {task.id!r}", problem, "Give all dialogues the same number: they share one set of actions"
            )
    return Layout(images, tuple(sorted({turn.kind for task in tasks for turn in turns_of(task)})))


def play(
    tasks: Sequence[Task], backend: InferenceBackend, models: tuple[str, str], policy: TurnPolicy, rng: np.random.Generator,
    *, every: bool = False,
) -> Played:  # fmt: skip
    """Play every dialogue once: each turn's action is drawn from the policy in the state that its own earlier actions make.

    `models` are the local and the cloud one. With `every` each turn also asks for what the other actions would have got.
    """
    layout, agent = layout_of(tasks), dialogue_agent()
    rows: list[tuple[int, int, int, int, float]] = []
    features, associations, others = list[FloatArray](), list[FloatArray](), list[FloatArray]()
    for number, task in enumerate(tasks):
        run = in_turn(agent(task))
        call: ModelCall = next(run)
        states: list[FloatArray] = []
        done = False
        while not done:
            turn = turn_of(call)
            kind, scores = layout.kinds.index(turn.kind), np.array([turn.associations], float).reshape(1, layout.images)
            previous = np.array([rows[-1][3]]) if states else None
            states.append(layout.state(previous, np.array([kind], np.intp)))
            seen = layout.features(states, scores)
            chance = policy(seen)[0]
            action = int(rng.choice(layout.actions, p=chance / chance.sum()))
            answers = {
                a: _answer(backend, call, models, layout, a) for a in (range(layout.actions) if every else (action,))
            }
            if every:
                others.append(np.array([answer.score for answer in answers.values()]))
            rows.append((number, call.position, kind, action, answers[action].score))
            features.append(seen)
            associations.append(scores)
            try:
                call = run.send(answers[action])
            except StopIteration:
                done = True
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    n = len(rows)
    turns = LoggedTurns(
        layout, columns[0], columns[1], columns[2], np.concatenate(features), columns[3], np.concatenate(associations),
        columns[4].astype(float), np.zeros(n, bool), np.full(n, np.nan), np.full(n, np.nan),
    )  # fmt: skip
    return Played(turns, np.array(others) if every else None)


def _answer(
    backend: InferenceBackend, call: ModelCall, models: tuple[str, str], layout: Layout, action: int
) -> Completion:
    wanted = np.flatnonzero(layout.uploads[action])
    attached = tuple(call.task.attachments[index] for index in wanted)
    return backend.submit(with_attachments(call, attached), models[int(layout.cloud[action])]).result()
