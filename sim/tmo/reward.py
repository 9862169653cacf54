"""What a turn is worth: the answer, how well the uploaded modalities fit the question, and what waiting and money take off.

A turn is one subtask: all rows of one (request, position). Its reward is a function of those rows and their ledger costs alone, so
a learning environment, a judge and the records of a run give the same number. Constrained learners leave the weights of latency and
usage at 0 and get the costs as channels of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sim.records import Columns
from workloads.errors import InputError

Quantity = TypeVar("Quantity", float, npt.NDArray[np.float64])


@dataclass(frozen=True)
class Reward:
    """response + association x association_norm - latency x latency_norm - usage x usage_norm (TMO, section 3).

    The norms of latency and usage are (value - low) / (high - low) with the ranges below, not clipped. A response nobody graded
    counts 0.
    """

    association: float = 1 / 3
    """Weight of the association of the uploaded modalities, in [0, 1] after its own norm (`association_norm`)."""
    latency: float = 1 / 3
    """Weight of a turn's seconds, tool and failed attempts included."""
    usage: float = 1 / 3
    """Weight of a turn's cost."""
    latency_range_s: tuple[float, float] = (0.0, 20.0)
    """Seconds that count 0 and 1."""
    usage_range: tuple[float, float] = (0.0, 0.0137)
    """Costs that count 0 and 1, in the unit of `usage_item`; the default is TMO's cloud call with three images, $."""
    usage_item: str = "total_usd"
    """The ledger's column that counts as usage: `total_usd`, one of its items, `energy_j` or `carbon_g`."""

    def __post_init__(self) -> None:
        for name in ("latency_range_s", "usage_range"):
            low, high = getattr(self, name)
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(
                    f"reward: {name}", f"found {low} to {high}", "Give two finite numbers, the lower first"
                )
        for name in ("association", "latency", "usage"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InputError(f"reward: {name}", f"found {getattr(self, name)}", "Give a weight of 0 or more")

    def of(self, response: Quantity, association_norm: Quantity, latency_s: Quantity, usage: Quantity) -> Quantity:
        """The reward of one turn (floats) or of many (columns); `response` is NaN where nobody graded."""
        late = (latency_s - self.latency_range_s[0]) / (self.latency_range_s[1] - self.latency_range_s[0])
        used = (usage - self.usage_range[0]) / (self.usage_range[1] - self.usage_range[0])
        reward: Quantity = (
            _graded(response) + self.association * association_norm - self.latency * late - self.usage * used
        )
        return reward


def _graded(response: Any) -> Any:
    """0 where nobody graded."""
    if isinstance(response, np.ndarray):
        return np.nan_to_num(response)
    return 0.0 if math.isnan(response) else response


def association_norm(associations: Sequence[float], uploaded: Sequence[int]) -> float:
    """The sum of a turn's association scores over the uploaded modalities, min-max over all subsets: in [0, 1].

    The least sum over subsets is that of the negative scores, the largest that of the positive ones. 0 where all scores are 0.
    """
    low = span = covered = 0.0
    for score in associations:
        if score < 0.0:
            low += score
        span += abs(score)
    for index in uploaded:
        covered += associations[index]
    return (covered - low) / span if span else 0.0


def turns_of_rows(subtasks: Columns, items: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The subtask table by turn, in order of (request, position): latency_s, score and these ledger items, each summed over attempts.

    The seconds of an agent's last tool call, which belong to no answer, are a row of their own behind the last turn: they go to it.
    A turn's `score` and `tier` are those of its last attempt that was answered, NaN and -1 where none was; its `reason` is that of
    the first attempt, so the policy's.
    """
    order = np.lexsort((np.arange(len(subtasks["request"])), subtasks["position"], subtasks["request"]))
    rows = {name: column[order] for name, column in subtasks.items()}
    first = np.ones(len(order), dtype=bool)
    same_request = rows["request"][1:] == rows["request"][:-1]
    last_tool = (rows["tier"] < 0) & (rows["status"] == "ok")
    first[1:] = ~same_request | ((rows["position"][1:] != rows["position"][:-1]) & ~last_tool[1:])
    turn, count = np.cumsum(first) - 1, int(first.sum())
    found: dict[str, npt.NDArray[Any]] = {name: rows[name][first] for name in ("request", "position")}
    found["latency_s"] = np.bincount(turn, rows["end_s"] - rows["start_s"], minlength=count)
    for item in items:
        found[item] = np.bincount(turn, rows[item], minlength=count)
    found["reason"] = rows["reason"][first]
    answered = (rows["status"] == "ok") & (rows["tier"] >= 0)
    for name, missing in (("score", math.nan), ("tier", -1)):
        found[name] = np.full(count, missing, rows[name].dtype)
        found[name][turn[answered]] = rows[name][answered]
    return found
