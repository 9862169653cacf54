"""Recordings that others made, as Isthmus recordings: RouteLLM answers and InterCode episodes.

Neither holds token counts: they are derived from the text at `bytes_per_token` of the model that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from workloads.agent import FRAMING_BYTES, payload_bytes
from workloads.errors import InputError, suggest
from workloads.outcome_model import OutcomeModel
from workloads.readers import intercode, routellm
from workloads.recording import Recording
from workloads.task import Completion, Message, Task

UNRECORDED_ANSWER_TOKENS = 150
"""Length of an answer whose text a file leaves out (RouteLLM's MMLU files); such answers are labelled `modelled`."""


def _completion(
    model: str, text: str, messages: tuple[Message, ...], bytes_per_token: float, *, score: float, tool_text: str | None = None,
    tool_s: float = 0.0,
) -> Completion:  # fmt: skip
    prompt_tokens = max(1, round((payload_bytes(messages) - FRAMING_BYTES) / bytes_per_token))
    size = len(text.encode())
    tokens = max(1, round(size / bytes_per_token)) if text else UNRECORDED_ANSWER_TOKENS
    return Completion(
        model, text, prompt_tokens, tokens, FRAMING_BYTES + size, tool_text=tool_text, tool_s=tool_s, score=score,
        provenance="exact" if text else "modelled",
    )  # fmt: skip


def routellm_recording(path: Path, columns: Mapping[str, str], bytes_per_token: Mapping[str, float]) -> Recording:
    """RouteLLM's answers; `columns` maps the names of our models to the file's columns. One subtask a task."""
    known = routellm.models(path)
    for column in columns.values():
        if column not in known:
            raise InputError(f"{path}: row 1", f"no model {column!r}", suggest(column, known))
    recording = Recording(columns, source=str(path))
    for number, row in enumerate(routellm.read(path)):
        task = Task(f"q{number}", row.prompt, family="question", prompt_tokens=_tokens(row.prompt, bytes_per_token))
        recording.tasks.append(task)
        messages = (Message("user", row.prompt),)
        for model, column in columns.items():
            answer = _completion(
                model, row.response.get(column, ""), messages, bytes_per_token[model], score=float(row.correct[column])
            )
            recording.add(task.id, messages, answer)
    return recording


def intercode_recording(
    paths: Mapping[str, Path], bytes_per_token: Mapping[str, float], tool_s: float
) -> tuple[Recording, OutcomeModel]:
    """InterCode episodes of several models on the same tasks, and a model of outcomes for placements that mix them."""
    recording = Recording(paths, source=" and ".join(map(str, paths.values())))
    episodes: dict[str, dict[str, list[Completion]]] = {}
    for model, path in paths.items():
        for episode in intercode.read(path):
            task = Task(
                f"t{episode.task_id}", episode.query, family=episode.hardness or episode.environment or "episode",
                prompt_tokens=_tokens(episode.query, bytes_per_token),
            )  # fmt: skip
            if task.id not in episodes:
                recording.tasks.append(task)
            steps = _record_episode(recording, model, task, episode, bytes_per_token[model], tool_s)
            episodes.setdefault(task.id, {})[model] = steps
    complete = [task for task in recording.tasks if len(episodes[task.id]) == len(paths)]
    if not complete:
        raise InputError(recording.source, "no task occurs in all files", "Give episodes of the same tasks")
    recording.tasks = complete
    return recording, OutcomeModel(episodes)


def _record_episode(
    recording: Recording, model: str, task: Task, episode: intercode.Episode, bytes_per_token: float, tool_s: float
) -> list[Completion]:
    messages: tuple[Message, ...] = (Message("user", task.prompt),)
    steps = []
    # InterCode grades an episode by the best reward of any turn; rewards can be negative, scores cannot.
    score = min(1.0, max(0.0, episode.reward))
    for turn, (action, observation) in enumerate(zip(episode.actions, episode.observations, strict=True)):
        last = turn == len(episode.actions) - 1
        step = _completion(
            model,
            action,
            messages,
            bytes_per_token,
            score=score,
            tool_text=None if last else observation or "",
            tool_s=tool_s,
        )
        recording.add(task.id, messages, step)
        steps.append(step)
        messages += (Message("assistant", action), Message("tool", observation or ""))
    return steps


def _tokens(text: str, bytes_per_token: Mapping[str, float]) -> int:
    return max(1, round(len(text.encode()) / next(iter(bytes_per_token.values()))))
