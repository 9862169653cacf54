"""Made-up models that work on the pair's tasks in words: any number of them, told apart by their quality.

A model takes the next right step, from what the tools have said so far, unless it errs. Whether it errs is one draw per task and
moment that all models share: a model of quality q errs where the draw is below `most_errors * (1 - q) + fewest_errors * q`, and so
every model errs wherever a better one does. An error is a useless step, a wrong name put in place of the right one, or, at the end,
a wrong answer. Models below `coarse_from` work out one name a step, the others think back and work out two, as the shipped pair does.

Nothing of this is measured: it is labelled `modelled`. It is for workflows with more models than the shipped pair has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from workloads.agent import FRAMING_BYTES
from workloads.errors import InputError
from workloads.task import Completion, Message, ModelCall
from workloads.tasks.pair import count_tokens
from workloads.tasks.problem import Fact, Problem

_TOLD = re.compile(r"\s*([A-Za-z]+)\s*=\s*([^;=]+?)\s*")
_FAILED = ("error", "nothing")


class Errors(NamedTuple):
    """Chance that a step errs, of the worst model and of the best, and from which quality on models take coarse steps."""

    most: float = 0.3
    fewest: float = 0.01
    coarse_from: float = 0.2


class ModelledPair:
    """A backend for tasks of `pair_tasks`; `quality` maps a model's name to 0 (worst) .. 1 (best)."""

    def __init__(self, quality: Mapping[str, float], errors: Errors | None = None) -> None:
        self._quality, self._errors = dict(quality), errors or Errors()

    def submit(self, call: ModelCall, model: str) -> Completion:
        """The model's step, at once. Raises InputError for a task that brings no solution."""
        problem = call.task.latent
        if not isinstance(problem, Problem):
            remedy = "Use workload.tasks of kind pair, or a recording"
            raise InputError(f"task {call.task.id!r}", "brings no solution that models could be made up from", remedy)
        text = self.step(problem, call, self._quality[model])
        tokens = count_tokens((Message("assistant", text),)) - 3
        download_bytes = FRAMING_BYTES + len(text.encode())
        return Completion(model, text, call.prompt_tokens, tokens, download_bytes, provenance="modelled")

    def step(self, problem: Problem, call: ModelCall, quality: float) -> str:
        """What a model of this quality says now."""
        errors, known = self._errors, told(call.messages)
        done = next((n for n, fact in enumerate(problem.chain) if fact.name not in known), len(problem.chain))
        moment = f"{call.task.id} {done} {len(call.messages)}"
        if _draw(moment, "err") < errors.most * (1 - quality) + errors.fewest * quality:
            return _mistake(problem, known, done, moment)
        if done == len(problem.chain):
            return f"answer {known[problem.chain[-1].name]}"
        coarse = quality >= errors.coarse_from
        ahead = problem.chain[done : done + (2 if coarse else 1)]
        thought = f"{' needs '.join(fact.name for fact in reversed(problem.chain[done:]))} : " if coarse else ""
        asked = [fact.statement(known.get(fact.base, "") if n == 0 else fact.base) for n, fact in enumerate(ahead)]
        return f"{problem.verb} {thought}{' ; '.join(asked)}"


def told(messages: tuple[Message, ...]) -> dict[str, str]:
    """Name -> value, as the tools have told it by now; the last word counts."""
    known: dict[str, str] = {}
    for message in messages:
        if message.role == "tool":
            for part in message.content.split(";"):
                found = _TOLD.fullmatch(part)
                if found and not found[2].lower().startswith(_FAILED):
                    known[found[1]] = found[2]
    return known


def _mistake(problem: Problem, known: Mapping[str, str], done: int, moment: str) -> str:
    """The same wrong step for every model that errs here."""
    if done == len(problem.chain):
        wrong = problem.chain[-2]  # one step short of the end
        return f"answer {known.get(wrong.name, wrong.value)}"
    fact = problem.chain[done]
    others = [other for other in (*problem.chain[:done], *problem.others) if other.name in known or not other.base]
    if _draw(moment, "kind") < 0.5 or not others:
        return f"{problem.verb} {fact.name} ="  # says nothing that a tool could work out
    other: Fact = others[int(_draw(moment, "which") * len(others))]
    value = known.get(other.name, other.value)
    return f"{problem.verb} {fact.statement(value) if fact.base else f'{fact.name} = {value}'}"


def _draw(moment: str, what: str) -> float:
    digest = hashlib.sha256(f"{moment} {what}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
