"""Muon for the matrices inside the decoder, Adam for the rest, with a state of plain tensors.

Muon: Jordan et al., 2024 (https://kellerjordan.github.io/posts/muon/). torch.optim.Muon works in bfloat16 one matrix at a time;
on a CPU without bfloat16 arithmetic, float32 on all matrices of a shape at once takes half the time.
"""

from __future__ import annotations

from typing import Any

import torch

_MOMENTUM = 0.95
_BETAS = (0.9, 0.98)
_EPSILON = 1e-8
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the quintic Newton-Schulz iteration, from the page above."""


class Optimiser:
    """Steps every parameter of a decoder; embeddings and norms go to Adam, all other matrices to Muon."""

    def __init__(self, model: torch.nn.Module, weight_decay: float = 0.01) -> None:
        self._decay = weight_decay
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._rest = [(name, p) for name, p in named if p.ndim != 2 or "embed" in name]
        shapes: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        for _, p in named:
            if not any(p is other for _, other in self._rest):
                shapes.setdefault(tuple(p.shape), []).append(p)
        self._groups = shapes
        self.state: dict[str, torch.Tensor] = {"count": torch.zeros((), dtype=torch.int64)}
        for shape, group in shapes.items():
            self.state[_key(shape)] = torch.zeros(len(group), *shape)
        for name, p in self._rest:
            self.state[f"first.{name}"] = torch.zeros_like(p)
            self.state[f"second.{name}"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, rate: float, muon_rate: float) -> None:
        """One update from the gradients in place, which it then clears."""
        self.state["count"] += 1
        for shape, group in self._groups.items():
            self._muon(shape, group, muon_rate)
        for name, p in self._rest:
            self._adam(name, p, rate)

    def _muon(self, shape: tuple[int, ...], group: list[torch.nn.Parameter], rate: float) -> None:
        gradient = torch.stack([_gradient(p) for p in group])
        momentum = self.state[_key(shape)]
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        update = _orthogonal(gradient.lerp_(momentum, _MOMENTUM))
        scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
        for p, change in zip(group, update, strict=True):
            p.mul_(1 - rate * self._decay).add_(change, alpha=-scale)
            p.grad = None

    def _adam(self, name: str, p: torch.nn.Parameter, rate: float) -> None:
        gradient, count = _gradient(p), int(self.state["count"])
        first, second = self.state[f"first.{name}"], self.state[f"second.{name}"]
        first.lerp_(gradient, 1 - _BETAS[0])
        second.lerp_(gradient.square(), 1 - _BETAS[1])
        size = (second / (1 - _BETAS[1] ** count)).sqrt_().add_(_EPSILON)
        p.addcdiv_(first, size, value=-rate / (1 - _BETAS[0] ** count))
        p.grad = None


def _key(shape: tuple[int, ...]) -> str:
    return "momentum." + "x".join(map(str, shape))


def _gradient(p: torch.nn.Parameter) -> torch.Tensor:
    assert p.grad is not None, "every parameter takes part in the loss"
    return p.grad


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest matrices with singular values near one: shape (n, rows, columns)."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.mT if tall else x
    return result


def rate_at(step: int, steps: int, warm_up: int = 100) -> float:
    """Share of the peak rate: up over `warm_up` steps, and down to nothing over all of them."""
    return min((step + 1) / warm_up, 1 - step / steps)


def clip(model: Any, limit: float = 1.0) -> None:
    """Scale the gradient down to this norm."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
