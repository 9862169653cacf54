"""The truth behind generated dialogues: its formula, its noise, and that a conversation tells its history."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.dialogue import Turn, dialogue_agent, dialogue_task
from workloads.dialogue_truth import DialogueBackend, DialogueLatent, History, Kind, Truth, history_of, signature
from workloads.errors import InputError
from workloads.task import Attachment, Completion, Message, ModelCall, Task, with_attachments

KIND = Kind("query", 0.5, 0.9, 0.8, (1.0,), 50.0)
TRUTH = Truth(memory=0.5, fade=0.1, distraction=0.2, switch=0.05, noise=0.6)
MODELS = {"tiny": 0.0, "huge": 1.0}
NAMES = ("photo", "sound")


def mean(needs: Sequence[float], now: str = "", earlier: str = "", *, quality: float = 1.0, position: int = 0,
         switched: bool = False) -> float:  # fmt: skip
    """The expected score; modalities are letters a, b, ..."""
    letters = "abcdef"[: len(needs)]
    sees, saw = [letter in now for letter in letters], [letter in earlier for letter in letters]
    return TRUTH.mean(KIND, needs, quality, position, sees, saw, switched=switched)


def test_the_formula_by_hand() -> None:
    """Each part of it on its own, with numbers worked out by hand."""
    assert mean((0.0, 0.0)) == pytest.approx(0.9)
    assert mean((0.0, 0.0), quality=0.0) == pytest.approx(0.5)
    assert mean((0.0, 0.0), quality=0.0, position=2) == pytest.approx(0.3)
    assert mean((0.5, 0.0)) == pytest.approx(0.9 * (1 - 0.8 * 0.5))
    assert mean((1.0, 1.0), "a") == pytest.approx(0.9 * (1 - 0.8 * 0.5)), "half of what is needed is missed"
    assert mean((1.0, 1.0), "ab") == pytest.approx(0.9)
    assert mean((1.0, 1.0), "a", "b") == pytest.approx(0.9 * (1 - 0.8 * 0.25)), "remembered half"
    assert mean((0.0, 0.0), "a") == pytest.approx(0.9 - 0.2 * 0.5), "one of two is sent in vain"
    assert mean((0.0, 0.0), switched=True) == pytest.approx(0.85)
    assert mean((1.0,) * 6, quality=0.0, position=9, switched=True) == 0.0, "never below 0"


NEEDS = st.lists(st.floats(0, 1), min_size=0, max_size=6)


@given(needs=NEEDS, data=st.data())
def test_means_stay_in_range_and_rise_with_what_is_needed(needs: list[float], data: st.DataObject) -> None:
    """In [0, 1]; seeing what is needed beyond its clutter helps; memory lies between seeing now and never."""
    letters = "abcdef"[: len(needs)]
    now = "".join(data.draw(st.sets(st.sampled_from(letters)))) if needs else ""
    quality, position = data.draw(st.floats(0, 1)), data.draw(st.integers(0, 20))
    value = mean(needs, now, quality=quality, position=position)
    assert 0.0 <= value <= 1.0
    for letter in set(letters) - set(now):
        earlier = mean(needs, now, letter, quality=quality, position=position)
        assert earlier >= value - 1e-12
    better = mean(needs, now, quality=min(1.0, quality + 0.1), position=position)
    assert better >= value - 1e-12


@given(needs=st.lists(st.floats(0, 1), min_size=1, max_size=5), data=st.data())
def test_columns_say_what_single_turns_say(needs: list[float], data: st.DataObject) -> None:
    """The oracle's arrays and the simulation's floats are one formula."""
    shape = len(needs)
    now = np.array(data.draw(st.lists(st.booleans(), min_size=shape, max_size=shape)))
    earlier = np.array(data.draw(st.lists(st.booleans(), min_size=shape, max_size=shape)))
    array = np.array(needs)
    columns = TRUTH.skill(KIND, 0.3, 4) * (1 - KIND.visual * TRUTH.missed(array, now, earlier))
    columns -= TRUTH.clutter(array, now)
    plain = TRUTH.mean(KIND, needs, 0.3, 4, now.tolist(), earlier.tolist(), switched=False)
    assert max(0.0, float(columns)) == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("expected", [0.05, 0.3, 0.5, 0.95])
def test_noise_has_the_stated_mean_and_spread(expected: float) -> None:
    """The noise u + v - 1 has mean 0 and variance 1/6: 20,000 draws agree within 4 standard errors, and none leaves [0, 1]."""
    drawn = np.array([TRUTH.score(expected, key * 7919, key % 5, "huge", (True, False)) for key in range(20_000)])
    deviation = 0.6 * min(expected, 1 - expected) / 6**0.5
    assert drawn.mean() == pytest.approx(expected, abs=4 * deviation / 20_000**0.5)
    assert drawn.std() == pytest.approx(deviation, rel=0.03)
    assert 0.0 <= drawn.min() <= drawn.max() <= 1.0


def test_noise_belongs_to_dialogue_position_model_and_what_is_seen() -> None:
    """The same slot gives the same score; a change of any of the four gives another, uncorrelated one."""
    base = (1, 0, "huge", (True, False))
    others = [
        (2, 0, "huge", (True, False)),
        (1, 1, "huge", (True, False)),
        (1, 0, "tiny", (True, False)),
        (1, 0, "huge", (False, True)),
    ]
    assert TRUTH.score(0.5, *base) == TRUTH.score(0.5, *base)
    for other in others:
        assert TRUTH.score(0.5, *other) != TRUTH.score(0.5, *base)
    pairs = np.array([[TRUTH.score(0.5, k, 0, "huge", (a, True)) for a in (True, False)] for k in range(5000)])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.05


def dialogue(turns: int = 3) -> Task:
    """A dialogue whose every turn needs the photo entirely and the sound not at all."""
    latent = DialogueLatent((KIND,) * turns, ((1.0, 0.0),) * turns, (40,) * turns, 12345)
    attached = (Attachment("photo", 90_000, 255), Attachment("sound", 16_000, 10))
    return dialogue_task(
        "d", [Turn(f"Question {n}: what?", "query", (0.9, 0.1)) for n in range(turns)], attached, latent=latent
    )


def conversation(backend: DialogueBackend, *actions: tuple[str, tuple[str, ...]]) -> list[tuple[ModelCall, Completion]]:
    """The calls and answers where turn i goes to a model with modalities."""
    run, found = dialogue_agent()(dialogue(len(actions))), []
    call = next(run)
    for number, (model, names) in enumerate(actions):
        assert isinstance(call, ModelCall)
        sent = with_attachments(call, tuple(a for a in call.task.attachments if a.name in names))
        found.append((sent, backend.submit(sent, model)))
        if number + 1 < len(actions):
            call = run.send(found[-1][1])
    return found


def test_the_conversation_tells_its_history() -> None:
    """Who answered last and what anybody saw is read off the answers, whatever the questions say."""
    backend = DialogueBackend(MODELS, frozenset({"huge"}))
    calls = conversation(backend, ("huge", ("photo",)), ("tiny", ()), ("huge", ("sound",)), ("huge", ()))
    told = [history_of(call.messages) for call, _ in calls]
    assert told == [
        History("", frozenset()), History("huge", frozenset({"photo"})), History("tiny", frozenset({"photo"})),
        History("huge", frozenset({"photo", "sound"})),
    ]  # fmt: skip
    assert history_of((Message("assistant", signature("m", ()) + "a: saw b"),)) == History("m", frozenset())


def test_the_backend_answers_by_the_truth() -> None:
    """Scores are the truth's for turn, action and history; tokens join the prompt; everything is labelled modelled."""
    backend = DialogueBackend(MODELS, frozenset({"huge"}), dataclasses.replace(TRUTH, noise=0.0))
    calls = conversation(backend, ("huge", ()), ("huge", ("photo",)), ("tiny", ()))
    missed, seen, remembered = (answer.score for _, answer in calls)
    assert missed == pytest.approx(0.9 * 0.2)
    assert seen == pytest.approx(0.9)
    assert remembered == pytest.approx((0.5 - 0.2) * (1 - 0.8 * 0.5) - 0.05)
    assert calls[1][1].prompt_tokens == calls[1][0].prompt_tokens
    assert calls[1][1].completion_tokens == 40
    assert {answer.provenance for _, answer in calls} == {"modelled"}


def test_who_is_not_told_what_goes_along_sees_all_it_can() -> None:
    """A call that nobody placed comes with everything, for a model that sees; with nothing, for one that does not."""
    backend = DialogueBackend(MODELS, frozenset({"huge"}), dataclasses.replace(TRUTH, noise=0.0))
    call = next(dialogue_agent()(dialogue()))
    assert isinstance(call, ModelCall)
    assert backend.submit(call, "huge").score == pytest.approx(0.9 - 0.2 * 0.5)
    assert backend.submit(call, "huge").prompt_tokens == call.prompt_tokens + 265
    assert backend.submit(call, "tiny").prompt_tokens == call.prompt_tokens


def test_what_the_truth_cannot_be_is_one_message() -> None:
    """Numbers outside [0, 1], model names that a conversation could not tell, unknown models, tasks without a truth."""
    for name in ("memory", "fade", "distraction", "switch", "noise"):
        for value in (-0.1, 1.1, float("nan")):
            with pytest.raises(InputError, match=name):
                Truth(**{name: value})
    with pytest.raises(InputError, match="model_name"):
        DialogueBackend({"a: b": 1.0}, frozenset())
    backend = DialogueBackend(MODELS, frozenset())
    call = next(dialogue_agent()(dialogue()))
    assert isinstance(call, ModelCall)
    with pytest.raises(InputError, match=r"no model 'hug'. Did you mean 'huge'"):
        backend.submit(call, "hug")
    with pytest.raises(InputError, match="no generated dialogue"):
        backend.submit(call._replace(task=dialogue_task("x", [Turn("?", "query")])), "huge")
