"""A model of outcomes for episodes that mix models, where only whole-request episodes were recorded.

Sizes: a step placed on model m takes m's own recorded action at that position of the same task, and the episode lasts as long as
that model's. Score: between the task's two recorded grades, moved from the strong model's to the weak one's by the Hill curve of
workloads/modelled.py in the position-weighted share of steps the weak model took. Both are assumptions; every answer given here
is labelled `modelled`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workloads.errors import RecordingMiss
from workloads.modelled import AccuracyModel
from workloads.task import Completion, Message, ModelCall

Episodes = Mapping[str, Mapping[str, Sequence[Completion]]]


class OutcomeModel:
    """Answers calls whose conversation nobody recorded; models are ordered from weak to strong, as recorded."""

    def __init__(self, episodes: Episodes, accuracy: AccuracyModel | None = None) -> None:
        self._episodes = episodes
        self._accuracy = accuracy or AccuracyModel()

    def __call__(self, call: ModelCall, model: str) -> Completion:
        """The recorded step of this task nearest in position, ending the episode where the model's own ended."""
        episodes = self._episodes.get(call.task.id, {})
        steps = episodes.get(model)
        if not steps:
            raise RecordingMiss(f"no episode of {model!r} on task {call.task.id!r} to model an outcome from")
        ends = call.position >= len(steps) - 1
        step = steps[min(call.position, len(steps) - 1)]
        score = self._score(call, model) if ends else float("nan")
        tool_text = None if ends else step.tool_text or ""
        return step._replace(prompt_tokens=call.prompt_tokens, tool_text=tool_text, score=score, provenance="modelled")

    def _score(self, call: ModelCall, model: str) -> float:
        episodes = self._episodes[call.task.id]
        weak, strong = next(iter(episodes)), next(reversed(list(episodes)))
        placed = [*_models_so_far(call.messages, episodes), model]
        weights = self._accuracy.weights(len(placed))
        share_weak = sum(w for w, m in zip(weights, placed, strict=True) if m == weak)
        lost = self._accuracy.lost_share(share_weak)
        return (1 - lost) * episodes[strong][-1].score + lost * episodes[weak][-1].score


def _models_so_far(messages: Sequence[Message], episodes: Mapping[str, Sequence[Completion]]) -> list[str]:
    """Which model wrote each earlier step, told by its text; a text both wrote counts as the strong model's."""
    models = list(reversed(list(episodes)))
    actions = [m.content for m in messages if m.role == "assistant"]
    return [
        next((m for m in models if min(i, len(episodes[m]) - 1) >= 0 and episodes[m][min(i, len(episodes[m]) - 1)].text == text),
             models[0])
        for i, text in enumerate(actions)
    ]  # fmt: skip
