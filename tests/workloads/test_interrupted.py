"""An interrupt loses no answer that is on its way, and waits for none that is not."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from tests.workloads.test_expansion import REPLY, TASKS, scripted_agent
from workloads.asking import AnswersInMemory
from workloads.errors import ModelUnavailable
from workloads.expansion import expand
from workloads.task import Completion, ModelCall

SENT = 12
"""Of the calls below, those that have left when the interrupt comes; the others wait for their turn."""


class Models:
    """Models that take batches. Ctrl-C comes when the answers with these numbers are waited for, the first time."""

    def __init__(self, *interrupts: int) -> None:
        self.interrupts, self.submitted = set(interrupts), 0

    def submit(self, call: ModelCall, model: str) -> OnTheWay:
        self.submitted += 1
        return OnTheWay(self.submitted - 1, REPLY(call, model), self.interrupts)

    def submit_many(self, calls: Sequence[tuple[ModelCall, str]]) -> list[OnTheWay]:
        return [self.submit(call, model) for call, model in calls]


class OnTheWay:
    """One call of it."""

    def __init__(self, number: int, answer: Completion, interrupts: Collection[int]) -> None:
        self._number, self._answer, self._interrupts = number, answer, set(interrupts)
        self._withdrawn = False

    def result(self) -> Completion:
        if self._withdrawn:
            raise ModelUnavailable("cancelled")
        if self._number in self._interrupts:
            self._interrupts.remove(self._number)
            raise KeyboardInterrupt
        return self._answer

    def withdraw(self) -> None:
        self._withdrawn = self._number >= SENT


def test_an_interrupt_keeps_what_is_on_its_way() -> None:
    """The answer that is waited for included; what has not been sent is taken back, and the user is told of the wait."""
    models, store, told = Models(3), AnswersInMemory(), list[str]()
    growing = expand(
        scripted_agent(1), TASKS[:10], models, "ab", answers=store, on_drain=lambda: told.append(f"{len(store)} so far")
    )
    with pytest.raises(KeyboardInterrupt):
        list(growing)
    assert (models.submitted, len(store), told) == (20, SENT, ["3 so far"])
    again = Models()
    assert len(list(expand(scripted_agent(1), TASKS[:10], again, "ab", answers=store))) == 10
    assert again.submitted == 20 - SENT


def test_an_interrupt_of_the_consumer_keeps_it_too() -> None:
    """Whoever works on the trees is interrupted: closing the generator has the same effect."""
    store = AnswersInMemory()
    growing = expand(scripted_agent(1), TASKS[:10], Models(), "ab", answers=store)
    assert next(growing).task.id == "t0"
    growing.close()
    assert len(store) == SENT


def test_a_second_interrupt_waits_for_nothing() -> None:
    """What was kept by then is kept."""
    store = AnswersInMemory()
    with pytest.raises(KeyboardInterrupt):
        list(expand(scripted_agent(1), TASKS[:10], Models(3, 7), "ab", answers=store))
    assert len(store) == 7
