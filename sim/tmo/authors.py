"""The setting of TMO's authors as their public code has it (liangqiyuan/TMO and /LCIO, MIT), to compare with and to judge.

It is a reproduction of an evaluation with known faults, kept apart from everything else: a local answer takes 0.011 s, because its
floating-point operations are divided by 1024; a wired cloud is slower without an image than with one; costs never vary; the table
that grades a policy is the one it was trained on. docs/tmo.md says what each does to the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sim.tmo.logged import FloatArray, Layout, LoggedTurns
from sim.tmo.responses import ResponseModel
from sim.tmo.reward import Reward
from sim.tmo.turn_policies import TurnPolicy, TurnValues, associations_in, predicted, walk
from workloads.errors import InputError, suggest

DEVICES = {
    "Raspberry Pi 4B": (13.5, 8.0),
    "Raspberry Pi 5": (31.4, 12.0),
    "Jetson Nano": (472.0, 10.0),
    "Jetson TX2": (1330.0, 15.0),
    "Jetson Xavier NX": (21_000.0, 20.0),
    "Jetson Orin NX": (100_000.0, 25.0),
    "Jetson AGX Orin": (275_000.0, 60.0),
    "iPhone 15 Pro": (35_000.0, 15.0),
}
"""Peak GFLOPS and watts."""
NETWORKS = {
    "wired": (6.46030, 4.76134, 6.24569, 6.98211),
    "wifi": (0.5, 1.898, 2.016, 2.238),
    "5g": (0.5, 6.037, 6.412, 7.118),
    "4g": (0.5, 16.603, 17.636, 19.573),
}
"""Seconds of a cloud turn that uploads 0, 1, 2, 3 images."""
CLOUD_USD = (0.00049, 0.005, 0.00945, 0.01368)
"""Dollars of a cloud turn that uploads 0, 1, 2, 3 images."""
LOCAL_PARAMETERS, LOCAL_TOKENS, DIVISOR = 3.8e9, 2048, 1024
USD_PER_J = 0.1668 / 3.6e6


@dataclass(frozen=True)
class Setting:
    """What a turn costs and what it is worth, to the authors. All arrays are (actions,) or (n, actions)."""

    layout: Layout
    device: str = "Jetson TX2"
    network: str = "wired"
    latency_budget_s: float = 30.0
    """Of a whole dialogue."""
    usage_budget_usd: float = 0.05

    def __post_init__(self) -> None:
        for what, name, table in (("device", self.device, DEVICES), ("network", self.network, NETWORKS)):
            if name not in table:
                raise InputError(what, f"{name!r} is not among the authors'", suggest(name, table))
        if self.layout.images >= len(CLOUD_USD):
            problem = f"the authors' costs end at {len(CLOUD_USD) - 1} images, the dialogues have {self.layout.images}"
            raise InputError("image_paths", problem, "Judge such a file with a scenario's own costs")
        for budget in ("latency_budget_s", "usage_budget_usd"):
            if not getattr(self, budget) > 0:
                raise InputError(budget, f"{getattr(self, budget):g} is no budget", "Give a number above 0")

    @property
    def latency_s(self) -> FloatArray:
        """Seconds of each action."""
        gflops, _ = DEVICES[self.device]
        local_s = 2 * LOCAL_PARAMETERS / DIVISOR * LOCAL_TOKENS / (gflops * 1e9)
        return self._by_images(local_s, NETWORKS[self.network])

    @property
    def usage_usd(self) -> FloatArray:
        """Dollars of each action."""
        return self._by_images(DEVICES[self.device][1] * float(self.latency_s[0]) * USD_PER_J, CLOUD_USD)

    def _by_images(self, local: float, cloud: tuple[float, ...]) -> FloatArray:
        uploaded = self.layout.uploads.sum(axis=1)
        costs: FloatArray = np.where(self.layout.cloud, np.array(cloud)[uploaded], local)
        return costs

    @property
    def reward(self) -> Reward:
        """Weights 1, 1/3, 1/3, 1/3; costs min-max over local and the cloud with each number of images."""
        seconds, dollars = self.latency_s, self.usage_usd
        return Reward(
            latency_range_s=(float(seconds.min()), float(seconds.max())),
            usage_range=(float(dollars.min()), float(dollars.max())),
        )

    def rewards(self, response: FloatArray, associations: FloatArray) -> FloatArray:
        """(n, actions): the reward of each action from its response and the turns' association scores, both with n rows."""
        summed = self.layout.associations_of(associations)
        low, high = summed.min(axis=1, keepdims=True), summed.max(axis=1, keepdims=True)
        norm = (summed - low) / np.where(high > low, high - low, 1.0)
        return self.reward.of(
            response, norm, np.broadcast_to(self.latency_s, norm.shape), np.broadcast_to(self.usage_usd, norm.shape)
        )

    def known(self, associations: FloatArray) -> FloatArray:
        """(n, actions): the part of the reward that needs no response: association less costs."""
        return self.rewards(np.zeros((len(associations), self.layout.actions)), associations)


def values_of(setting: Setting, model: ResponseModel) -> TurnValues:
    """What each action is worth now (myopically), by a response model and the setting's reward."""

    def values(features: FloatArray) -> FloatArray:
        responses = predicted(model, setting.layout, features)
        return setting.rewards(responses, associations_in(setting.layout, features))

    return values


class Evaluated(NamedTuple):
    """Means over dialogues: of a dialogue's mean turn (response, reward) or of its total (latency_s, usage_usd).

    `over_budget` is the share of dialogues beyond either budget, `excess_s` and `excess_usd` the mean excess over all dialogues (the
    authors average over violators alone).
    """

    response: float
    latency_s: float
    usage_usd: float
    reward: float
    over_budget: float
    excess_s: float
    excess_usd: float


def evaluated(
    setting: Setting,
    model: ResponseModel,
    turns: LoggedTurns,
    policy: TurnPolicy,
    rng: np.random.Generator,
    repeats: int = 1,
) -> Evaluated:
    """The authors' evaluation: each dialogue walked with the policy's own actions, graded by a response model.

    Whether it is fair depends on the model alone: theirs is the table the policy was trained on. `repeats` walks are averaged.
    """
    runs = [_one_evaluation(setting, model, turns, policy, rng) for _ in range(repeats)]
    return Evaluated(*(float(value) for value in np.mean(runs, axis=0)))


def _one_evaluation(
    setting: Setting, model: ResponseModel, turns: LoggedTurns, policy: TurnPolicy, rng: np.random.Generator
) -> Evaluated:
    walked = walk(turns, policy, rng)
    response, _ = model.predict(walked.features, walked.action)
    chosen = np.arange(len(turns)), walked.action
    reward = response + setting.known(turns.associations)[chosen]
    number = np.unique(turns.dialogue, return_inverse=True)[1]
    length = np.bincount(number)
    latency = np.bincount(number, setting.latency_s[walked.action])
    usage = np.bincount(number, setting.usage_usd[walked.action])
    late, dear = latency - setting.latency_budget_s, usage - setting.usage_budget_usd
    return Evaluated(
        float((np.bincount(number, response) / length).mean()), float(latency.mean()), float(usage.mean()),
        float((np.bincount(number, reward) / length).mean()), float(((late > 0) | (dear > 0)).mean()),
        float(np.maximum(late, 0).mean()), float(np.maximum(dear, 0).mean()),
    )  # fmt: skip
