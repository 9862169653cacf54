"""A trained placement policy on file: a folder with `policy.safetensors` (the network) and `policy.json` (what it is for)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.tmo.actions import Action
from sim.tmo.observing import Budget, View
from sim.tmo.reward import Reward
from workloads.errors import InputError

CARD, WEIGHTS = "policy.json", "policy.safetensors"
_TRAIN = "Train one with `run_sim.py train`, or name a policy that ships with Isthmus"
Numbers = npt.NDArray[Any]
"""float32 as trained, or float64 to evaluate in."""


class Network(NamedTuple):
    """A multilayer perceptron: (weights of shape (out, in), bias) of each layer, `tanh` or `relu` between them.

    The outputs are a learner's preferences for the actions: logits, or values.
    """

    layers: tuple[tuple[Numbers, Numbers], ...]
    activation: str

    def __call__(self, vector: Numbers) -> Numbers:
        """The outputs, shape (actions,), for an observation of shape (width,); or (n, actions) for (n, width)."""
        *hidden, (weights, bias) = self.layers
        for inner, offset in hidden:
            vector = vector @ inner.T + offset
            vector = np.tanh(vector) if self.activation == "tanh" else np.maximum(vector, 0.0)
        return vector @ weights.T + bias


@dataclass(frozen=True)
class Card:
    """What a policy was trained for and how. `decide`: greedy takes the preferred action, sample draws by softmax of the logits."""

    view: View
    reward: Reward
    learner: str
    decide: str
    scenario: str
    steps: int
    seed: int
    activation: str
    rule: Mapping[str, Any] = field(default_factory=dict)
    multipliers: list[list[float]] = field(default_factory=list)
    spends: list[list[float]] = field(default_factory=list)
    """[budget shown, mean cost] by rising budget, for a policy with one range of budgets that the mean request keeps: what to show it
    for the budget that is asked for. Empty: what is asked for."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """On episodes it was not trained on."""

    def as_json(self) -> str:
        """The card's text."""
        plain = asdict(self)
        plain["view"]["actions"] = [[action.tier, *action.modalities] for action in self.view.actions]
        plain["view"]["budgets"] = [list(budget) for budget in self.view.budgets]
        return json.dumps(plain, indent=1) + "\n"


def card_of(text: str, place: str) -> Card:
    """A card from its text. Raises InputError where it cannot be read."""
    try:
        plain = json.loads(text)
        view = plain.pop("view")
        view["actions"] = tuple(Action(tier, tuple(names)) for tier, *names in view["actions"])
        view["budgets"] = tuple(Budget(*budget) for budget in view["budgets"])
        view["kinds"], view["parts"] = tuple(view["kinds"]), tuple(view["parts"])
        reward: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.pop("reward").items()
        }
        plain["spends"] = [[float(shown), float(spent)] for shown, spent in plain.get("spends", ())]
        return Card(View(**view), Reward(**reward), **plain)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(place, f"cannot be read ({type(error).__name__}: {error})", _TRAIN) from None


def write_policy(folder: Path, card: Card, network: Network) -> None:
    """Write a policy; the card comes last, so that a folder with a card is complete."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{number}.{name}": np.ascontiguousarray(tensor)
               for number, layer in enumerate(network.layers) for name, tensor in zip(("weight", "bias"), layer, strict=True)}  # fmt: skip
    partial = folder / f".{WEIGHTS}.partial"
    save_file(tensors, partial)
    partial.chmod(0o644)  # it writes for its owner alone
    os.replace(partial, folder / WEIGHTS)
    partial = folder / f".{CARD}.partial"
    partial.write_text(card.as_json(), encoding="utf-8")
    os.replace(partial, folder / CARD)


def read_policy(folder: Path) -> tuple[Card, Network]:
    """A policy's card and network. Raises InputError for what is missing, cannot be read or does not fit together."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    for name in (CARD, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(str(folder), f"no trained policy: there is no {name}", _TRAIN)
    card = card_of((folder / CARD).read_text(encoding="utf-8", errors="replace"), str(folder / CARD))
    try:
        tensors = load_file(folder / WEIGHTS)
        layers = tuple((tensors[f"{number}.weight"], tensors[f"{number}.bias"]) for number in range(len(tensors) // 2))
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(str(folder / WEIGHTS), f"cannot be read ({error})", _TRAIN) from None
    sizes = [len(card.view.bounds[0]), *(len(bias) for _, bias in layers)]
    fits = [
        weights.shape == (after, before) for (weights, _), before, after in zip(layers, sizes, sizes[1:], strict=False)
    ]
    if not layers or not all(fits) or sizes[-1] != len(card.view.actions):
        problem = f"the network takes and gives {sizes}, its card says {sizes[0]} numbers and {len(card.view.actions)} actions"
        raise InputError(str(folder / WEIGHTS), problem, _TRAIN)
    return card, Network(layers, card.activation)
