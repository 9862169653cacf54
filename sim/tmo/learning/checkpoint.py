"""A training's state on file, without pickle: one safetensors file that is replaced atomically.

The random generators and simulations are not in it: a training begins both anew, with seeds of their own, at every checkpoint, so that
one that was interrupted goes on exactly as one that was not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from stable_baselines3.common.base_class import BaseAlgorithm

from sim.tmo.constraint import Multipliers
from sim.tmo.learning.vector import PricedReplay
from workloads.errors import InputError

NAME = "checkpoint.safetensors"
_REPLAYED = ("observations", "next_observations", "actions", "rewards", "dones", "signals", "places")
_COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate")


def save(folder: Path, model: BaseAlgorithm, multipliers: Multipliers, identity: str) -> None:
    """Keep the weights, the optimiser's state, the multipliers and the replay buffer; `identity` says which training this is."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"policy/{name}": tensor.contiguous() for name, tensor in model.policy.state_dict().items()}
    for index, state in model.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value).clone() for name, value in state.items()}
    for index, knots in enumerate(zip(multipliers.values, multipliers.integrals, strict=True)):
        tensors[f"multipliers/{index}"] = torch.tensor(np.array(knots))
    counters: dict[str, Any] = {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)}
    replay = getattr(model, "replay_buffer", None)
    if isinstance(replay, PricedReplay):
        filled = replay.buffer_size if replay.full else replay.pos
        tensors |= {f"replay/{name}": torch.tensor(getattr(replay, name)[:filled]) for name in _REPLAYED}
        counters |= {"pos": replay.pos, "full": replay.full}
    partial = folder / f".{NAME}.partial"
    save_file(tensors, partial, {"identity": identity, "counters": json.dumps(counters)})
    os.replace(partial, folder / NAME)


def restore(folder: Path, model: BaseAlgorithm, multipliers: Multipliers, identity: str) -> bool:
    """Go on from a checkpoint; False where there is none. Raises InputError for another training's, or one that cannot be read."""
    path = folder / NAME
    if not path.is_file():
        return False
    remedy = "Remove the file to begin anew, or choose another folder"
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(str(path), f"cannot be read ({error})", remedy) from None
    if facts.get("identity") != identity:
        raise InputError(str(path), "belongs to another training (scenario, learner, budgets or seed differ)", remedy)
    model.policy.load_state_dict(_part(tensors, "policy/"))
    optimizer = model.policy.optimizer.state_dict()
    states: dict[int, dict[str, Any]] = {}
    for name, tensor in _part(tensors, "optimizer/").items():
        index, _, field = name.partition("/")
        states.setdefault(int(index), {})[field] = tensor
    model.policy.optimizer.load_state_dict({**optimizer, "state": states})
    for number in range(len(multipliers.values)):
        multipliers.values[number], multipliers.integrals[number] = tensors[f"multipliers/{number}"].numpy()
    counters = json.loads(facts["counters"])
    for name in _COUNTERS:
        if name in counters:
            setattr(model, name, counters[name])
    replay = getattr(model, "replay_buffer", None)
    if isinstance(replay, PricedReplay):
        for name, tensor in _part(tensors, "replay/").items():
            np.copyto(getattr(replay, name)[: len(tensor)], tensor.numpy())
        replay.pos, replay.full = counters["pos"], counters["full"]
    return True


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
