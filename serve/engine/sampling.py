"""Choosing the next tokens of a batch, each row by its own settings and from its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from serve.generation import Sampling


def choose(
    logits: torch.Tensor, samplings: Sequence[Sampling], draws: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """([rows] next tokens, [rows] their natural log-probabilities under the unmodified distribution).

    logits: [rows, vocabulary], float32. draws: a number in [0, 1) per row; greedy rows ignore theirs. A row's result depends on
    that row alone. Among equal logits greedy takes any, the same one every time.
    """
    best, tokens = logits.max(dim=-1)
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        tokens[rows] = _draw(logits[rows], [samplings[row] for row in drawn], [draws[row] for row in drawn])
        best = logits.gather(1, tokens[:, None])[:, 0]
    return tokens, best - logits.logsumexp(dim=-1)


def _draw(logits: torch.Tensor, samplings: Sequence[Sampling], draws: Sequence[float]) -> torch.Tensor:
    """One token a row: the inverse of the cumulated nucleus probabilities at the row's draw."""
    device = logits.device
    temperature = torch.tensor([sampling.temperature for sampling in samplings], device=device)[:, None]
    top_p = torch.tensor([sampling.top_p for sampling in samplings], dtype=torch.double, device=device)[:, None]
    # In double precision: a sum over a large vocabulary must not lose the draw's last digits.
    probabilities = torch.softmax((logits / temperature).double(), dim=-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    above = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(above >= top_p, 0.0)  # the most likely token has nothing above it and always stays
    reached = ordered.cumsum(dim=-1)
    target = torch.tensor(draws, dtype=torch.double, device=device)[:, None] * reached[:, -1:]
    index = torch.searchsorted(reached, target, right=True).clamp(max=logits.shape[1] - 1)
    return order.gather(1, index)[:, 0]
