from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest

from workloads.errors import InputError
from workloads.task import Completion, Message, Outcome, Task
from workloads.tasks import hops, pair
from workloads.tasks.pair import (
    FAMILIES,
    MAX_STEP_TOKENS,
    MAX_SUBTASKS,
    TOOLS,
    count_tokens,
    grade,
    pair_agent,
    pair_tasks,
    split_of,
    vocabulary,
)
from workloads.tasks.problem import STYLES


def _solve(task: Task, style: str) -> tuple[Outcome, list[str]]:
    """Answer a task by its own solution in one style, or in both, mixed at random."""
    run, random, done = pair_agent()(task), Random(task.id), 0
    steps: list[str] = []
    next(run)
    while True:
        text, done = task.latent.step(done, random.choice(STYLES) if style == "mixed" else style)
        steps.append(text)
        try:
            run.send(Completion("reference", text, 1, 1, 1))
        except StopIteration as ended:
            return ended.value, steps


@pytest.mark.parametrize("style", [*STYLES, "mixed"])
def test_the_reference_solution_is_graded_right_in_every_style(style):
    """Through the agent and its tools, either style alone and any mixture of the two ends in a score of 1."""
    for task in pair_tasks("test", 300, 1, lengths=range(1, 7)):
        outcome, steps = _solve(task, style)
        assert outcome.score == 1.0, (task.prompt, steps)
        assert len(steps) <= MAX_SUBTASKS - 2, "some room for a wrong step or two"
        assert max(count_tokens((Message("assistant", step),)) - 3 for step in steps) < MAX_STEP_TOKENS


def test_the_fine_style_takes_more_steps_of_less():
    """Over the whole distribution the small model's style splits the work finer, in each family."""
    for family in FAMILIES:
        tasks = pair_tasks("test", 200, 2, [family])
        fine, coarse = (sum(len(_solve(task, style)[1]) for task in tasks) for style in STYLES)
        assert fine > 1.3 * coarse


def test_no_step_of_the_tools_contradicts_the_latent_solution():
    """The knowledge base and the calculator give the entities and quantities the problem was made from."""
    for task in pair_tasks("train", 200, 3):
        problem, seen = task.latent, dict[str, str]()
        for fact in (*problem.chain, *problem.others):
            found = TOOLS[problem.verb](task, fact.statement(seen.get(fact.base, "")))
            assert found == f"{fact.name} = {fact.value}"
            seen[fact.name] = fact.value
            assert problem.verb == "find" or 1 <= int(fact.value) <= 99
            assert fact.base in seen or not fact.base


def test_a_wrong_way_leads_to_a_wrong_name():
    """No distractor of a knowledge-base question repeats the relation of the chain it hangs on."""
    for task in pair_tasks("train", 300, 4, ["hops"], distractors=[2]):
        told = [fact.sentence.split(" is ")[1] for fact in (*task.latent.chain, *task.latent.others)]
        assert all(told.count(fact.sentence.split(" is ")[1]) == 1 for fact in task.latent.chain[1:])


def test_the_same_seed_gives_the_same_tasks_in_another_process():
    """Tasks depend on the arguments alone: not on hash randomisation, not on what was drawn before."""
    here = pair_tasks("validation", 20, 7)
    code = (
        "from workloads.tasks.pair import pair_tasks; pair_tasks('test', 5, 1); "
        "print([(t.id, t.prompt, t.answer) for t in pair_tasks('validation', 20, 7)])"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str([(t.id, t.prompt, t.answer) for t in here])
    assert [t.prompt for t in pair_tasks("validation", 20, 8)] != [t.prompt for t in here]


def test_no_question_is_in_two_splits():
    """Over thousands of draws from different seeds, each question stays in the split its text belongs to."""
    drawn = {
        split: {t.prompt for seed in range(4) for t in pair_tasks(split, 700, seed)}
        for split in ("train", "validation", "test")
    }
    assert all(split_of(prompt) == split for split, prompts in drawn.items() for prompt in prompts)
    assert not drawn["train"] & drawn["test"]
    assert not drawn["train"] & drawn["validation"]
    assert not drawn["validation"] & drawn["test"]
    assert min(map(len, drawn.values())) > 2500, "different seeds give different questions"


def test_within_a_list_no_question_and_no_id_comes_twice():
    """Also where there are few questions: one relation, no distractors."""
    tasks = pair_tasks("test", 300, 0, ["hops"], lengths=[1], distractors=[0])
    assert len({t.prompt for t in tasks}) == len({t.id for t in tasks}) == 300


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("length", [1, 3, 6])
@pytest.mark.parametrize("distractors", [0, 2])
def test_the_difficulty_is_as_asked(family, length, distractors):
    """Length is the operations of the solution and distractors the clauses beyond it; both stand in the features."""
    for task in pair_tasks("train", 25, 5, [family], [length], [distractors]):
        assert task.features == {"length": length, "distractors": distractors}
        assert (task.family, task.latent.length, task.latent.distractors) == (family, length, distractors)
        _, steps = _solve(task, "fine")
        assert (
            sum(step.startswith(("find", "compute")) for step in steps) == length + 1
        )  # what is given is worked out, too
        assert task.prompt.count(" .") == length + 1 + distractors


def test_all_difficulties_and_both_families_occur_evenly():
    """A drawn test set covers length 1 to 4 and 0 to 2 distractors in both families."""
    tasks = pair_tasks("test", 960, 0)
    cells: dict[tuple[str, int, int], int] = {}
    for task in tasks:
        cell = task.family, task.features["length"], task.features["distractors"]
        cells[cell] = cells.get(cell, 0) + 1
    assert len(cells) == 24
    assert min(cells.values()) >= 5


def test_more_questions_than_there_are(monkeypatch):
    """A family of forty questions has no hundred different ones, and no fifty of one split."""
    few = {"hops": lambda random, *difficulty: hops.draw(Random(random.randrange(40)), *difficulty)}
    monkeypatch.setattr(pair, "FAMILIES", few)
    with pytest.raises(InputError, match="count: found 100, but there are hardly more than"):
        pair_tasks("train", 100, 0, ["hops"], [1], [0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tset"}, r"split: found 'tset'.*Did you mean 'test'"),
        ({"count": -1}, "count: found -1"),
        ({"families": ["hobs"]}, r"families: found 'hobs'.*'hops'"),
        ({"families": []}, "families: found none"),
        ({"lengths": [0]}, r"lengths: found \[0\].*from 1 to 6"),
        ({"lengths": []}, "lengths"),
        ({"distractors": [3]}, r"distractors: found \[3\].*from 0 to 2"),
    ],
)
def test_bad_arguments_are_one_clear_message(arguments, message):
    """Place, what was found and what is allowed."""
    with pytest.raises(InputError, match=message):
        pair_tasks(**{"split": "test", "count": 3, "seed": 0} | arguments)


@pytest.mark.parametrize(
    ("argument", "found"),
    [
        ("the director of Blue Harbor", hops.facts()["director", "Blue Harbor"]),
        ("DIRECTOR of blue  harbor ?", hops.facts()["director", "Blue Harbor"]),
        ("mayor of hometown of Nia Voss", hops.facts()["mayor", hops.facts()["hometown", "Nia Voss"]]),
        ("director of Nia Voss", hops.NOTHING),
        ("director of Blue", hops.NOTHING),
        ("Blue Harbor 's director", hops.facts()["director", "Blue Harbor"]),
        ("the hometown of Nia Voss's mayor", hops.facts()["mayor", hops.facts()["hometown", "Nia Voss"]]),
        ("Nia Voss 's", hops.NOTHING),
        ("'s director", hops.NOTHING),
        ("Q = director of Blue Harbor", f"Q = {hops.facts()['director', 'Blue Harbor']}"),
        (
            "R needs Q : Q = hometown of Nia Voss ; R = Q 's mayor",
            f"Q = {hops.facts()['hometown', 'Nia Voss']} ; R = {hops.facts()['mayor', hops.facts()['hometown', 'Nia Voss']]}",
        ),
        (
            "R = mayor of Q ; Q = hometown of Nia Voss",
            f"R = nothing found ; Q = {hops.facts()['hometown', 'Nia Voss']}",
        ),
        ("grandmother of Nia Voss", hops.NOTHING),
        ("Nia Voss", "Nia Voss"),
        ("Nia", hops.NOTHING),
        ("Q = nia voss ; R = Q 's mayor", "Q = Nia Voss ; R = nothing found"),
        ("", hops.NOTHING),
        (" of ", hops.NOTHING),
    ],
)
def test_find(argument, found):
    """Chains are followed from the inside out; what does not exist is `nothing found`."""
    assert hops.find(Task("t"), argument) == found


def test_the_knowledge_base_is_the_same_everywhere():
    """The facts the shipped weights and recordings were made with: a change here means training and recording anew."""
    assert len(hops.facts()) == sum(len(hops.entities(kind)) for kind, _ in hops.RELATIONS.values())
    assert all(end in hops.entities(hops.RELATIONS[relation][1]) for (relation, _), end in hops.facts().items())
    assert all(start != end for (_, start), end in hops.facts().items())


def test_answers_are_graded_on_what_they_say():
    """Case, spacing and a full stop do not count; anything else does."""
    task = Task("t", answer="Nia Voss")
    assert [grade(task, text) for text in ("Nia Voss", " nia  voss .", "Nia Voss.", "Nia", "Nia Vosss", "")] == [
        1,
        1,
        1,
        0,
        0,
        0,
    ]
    assert grade(Task("t", answer="42"), "42.") == 1
    assert grade(Task("t", answer="42"), "142") == 0


def test_every_word_of_questions_steps_and_observations_is_in_the_vocabulary():
    """The closed vocabulary holds: nothing the reference solution or a useless step leads to is unknown to the models."""
    known = set(vocabulary())
    for task in pair_tasks("train", 400, 9):
        random = Random(task.id)
        texts = [task.prompt]
        for _ in range(4):
            step = task.latent.stray(random.randint(0, task.features["length"]), random)
            verb, argument = step.split(" ", 1)
            assert verb in TOOLS, "a useless step never ends the request"
            seen = TOOLS[verb](task, argument)
            texts += [step, seen]
        words = " ".join(texts).replace(":", " : ").split()
        assert {word for word in words if not word.removeprefix("-").isdecimal()} <= known
