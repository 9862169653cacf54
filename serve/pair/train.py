"""Train one model of the embedded pair: `python -m serve.pair.train --model slm --seed 1 --out DIR`.

Data are made on the fly from (seed, step), so a run stopped at any moment goes on from its last checkpoint to the same weights
to the bit. Checkpoints are safetensors and JSON. One thread, CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file

from serve.pair.dialogues import IGNORED, Example, examples
from serve.pair.models import RECIPES, Recipe, new_model
from serve.pair.optimiser import Optimiser, clip, rate_at
from serve.pair.tokenizer import PAD, pieces, save_tokenizer
from workloads.errors import InputError, suggest

_POOL = 16
"""Batches drawn and sorted by length at once."""
_PADDING = 16
"""Lengths are rounded up to multiples of this: the compiler sees few shapes."""
_CURRICULUM = 0.4
"""Share of the steps after which problems have their full length and all distractors."""
_FOLDER = "checkpoint"


class Trainer:
    """A model, its optimiser and the step they are at."""

    def __init__(self, recipe: Recipe, seed: int, compiled: bool = True) -> None:
        self.recipe, self.seed, self.step, self.seconds = recipe, seed, 0, 0.0
        self.losses: list[float] = []
        self.model = new_model(recipe, seed)
        self.optimiser = Optimiser(self.model)
        # Where the CPU multiplies bfloat16 itself a step takes half the time; elsewhere it would take three times as long.
        self._fast_bfloat16 = torch.cpu._is_avx512_bf16_supported()
        self._loss = torch.compile(self._plain_loss, dynamic=True) if compiled else self._plain_loss
        self._pool: list[tuple[torch.Tensor, torch.Tensor]] = []

    def advance(self) -> float:
        """One step; returns its loss."""
        started = time.perf_counter()
        place = self.step % _POOL
        if place == 0 or not self._pool:
            self._pool = self._draw(self.step // _POOL)
        ids, targets = self._pool[place]
        loss = self._loss(ids, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        clip(self.model)
        share = rate_at(self.step, self.recipe.steps)
        self.optimiser.step(self.recipe.rate * share, self.recipe.muon_rate * share)
        self.step += 1
        self.seconds += time.perf_counter() - started
        return float(loss.detach())

    def _plain_loss(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._fast_bfloat16):
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden)
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def _draw(self, pool: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of steps `pool` * _POOL and after: conversations of like length together, in random order."""
        hardest = min(1.0, pool * _POOL / (_CURRICULUM * self.recipe.steps))
        name, size = f"pair training {self.seed} {pool}", self.recipe.batch
        drawn = examples(self.recipe.style, size * _POOL, name, hardest)
        drawn.sort(key=lambda example: len(example.ids))
        batches = [_padded(drawn[start : start + size]) for start in range(0, len(drawn), size)]
        Random(name).shuffle(batches)
        return batches

    def save(self, folder: Path) -> None:
        """Write the state into `folder`, replacing what is there only when all of it is on disk."""
        fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
        for stale in (fresh, old):
            shutil.rmtree(stale, ignore_errors=True)
        fresh.mkdir(parents=True)
        weights = {f"model.{name}": p.detach().clone() for name, p in self.model.named_parameters()}
        save_file(
            weights | {f"optimiser.{name}": t for name, t in self.optimiser.state.items()}, fresh / "state.safetensors"
        )
        facts = {"step": self.step, "seconds": self.seconds, "losses": self.losses, **_identity(self.recipe, self.seed)}
        (fresh / "state.json").write_text(json.dumps(facts))
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; raises InputError if it belongs to another training."""
        facts = json.loads((folder / "state.json").read_text())
        mine = json.loads(json.dumps(_identity(self.recipe, self.seed)))
        if {key: facts.get(key) for key in mine} != mine:
            raise InputError(
                str(folder), "a checkpoint of a training with other settings", "Give another --out or remove it"
            )
        tensors = load_file(folder / "state.safetensors")
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(tensors[f"model.{name}"])
        for name, tensor in self.optimiser.state.items():
            tensor.copy_(tensors[f"optimiser.{name}"])
        self.step, self.seconds, self.losses, self._pool = facts["step"], facts["seconds"], facts["losses"], []


def _identity(recipe: Recipe, seed: int) -> dict[str, Any]:
    return {"seed": seed, "recipe": dataclasses.asdict(recipe), "vocabulary": len(pieces())}


def _padded(batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    length = -(-max(len(example.ids) for example in batch) // _PADDING) * _PADDING
    ids = torch.full((len(batch), length), pieces()[PAD])
    targets = torch.full((len(batch), length), IGNORED)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        targets[row, : len(example.targets)] = torch.tensor(example.targets)
    return ids, targets


def train(
    recipe: Recipe, seed: int, out: Path, save_every: int = 200, compiled: bool = True, stop: int | None = None
) -> Trainer:
    """Train to the end (or to step `stop`), going on from a checkpoint in `out`; writes the finished model into `out`."""
    trainer = Trainer(recipe, seed, compiled)
    if (out / _FOLDER / "state.json").exists():
        trainer.load(out / _FOLDER)
    last = recipe.steps if stop is None else min(stop, recipe.steps)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=recipe.steps, completed=trainer.step)
        recent: list[float] = []
        while trainer.step < last:
            recent.append(trainer.advance())
            if trainer.step % save_every == 0 or trainer.step == last:
                trainer.losses.append(round(sum(recent) / len(recent), 4))
                recent = []
                trainer.save(out / _FOLDER)
            text = f"loss {recent[-1]:.3f}" if recent else f"loss {trainer.losses[-1]:.3f}"
            progress.update(bar, completed=trainer.step, description=text)
    if trainer.step == recipe.steps:
        _finish(trainer, out)
    return trainer


def _finish(trainer: Trainer, out: Path) -> None:
    trainer.model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    save_tokenizer(out)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    facts = {
        **_identity(trainer.recipe, trainer.seed),
        "parameters": parameters,
        "seconds": round(trainer.seconds),
        "losses": trainer.losses,
    }
    (out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m serve.pair.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="slm or llm")
    parser.add_argument("--out", required=True, type=Path, help="folder for checkpoints and the finished model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="default: as in serve/pair/models.py")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    chosen = parser.parse_args(arguments)
    if chosen.model not in RECIPES:
        raise SystemExit(f"--model: no model {chosen.model!r}. {suggest(chosen.model, RECIPES)}")
    recipe = RECIPES[chosen.model]
    if chosen.steps is not None:
        recipe = dataclasses.replace(recipe, steps=chosen.steps)
    torch.set_num_threads(1)
    try:
        train(recipe, chosen.seed, chosen.out, chosen.save_every)
    except InputError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
