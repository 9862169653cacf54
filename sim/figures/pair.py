"""Any two fields of summaries against each other, for `run_sim.py frontier`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from sim.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    interval_arms,
    new_figure,
    numbers,
    shorten,
    styled,
)
from workloads.errors import InputError

_LOOKS = tuple(zip((BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK), "osD^vPX", strict=True))
_UNITS = {"_usd": "$", "_s": "s", "_j": "J", "_g": "g"}
_FORMATS = (".png", ".svg", ".pdf")


def draw_pair(rows: Sequence[Mapping[str, Any]], best: npt.NDArray[np.bool_], x: str, y: str, out: Path) -> None:
    """Write the figure: one colour and shape per run and family, intervals where the summary has them, the best joined."""
    if out.suffix not in _FORMATS:
        raise InputError(
            f"--out {out}", f"{out.suffix or 'no suffix'} is no figure format", f"Use {', '.join(_FORMATS)}"
        )
    figure = _figure(rows, best, x, y)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150)
    except OSError as error:
        raise InputError(f"--out {out}", f"cannot be written ({error.strerror})", "Choose another file") from None


@styled
def _figure(rows: Sequence[Mapping[str, Any]], best: npt.NDArray[np.bool_], x: str, y: str) -> Figure:
    figure = new_figure(f"{_words(y)} against {_words(x)}, with 95 % intervals", 5.2)
    axes = figure.add_subplot()
    several_runs = len({row["run"] for row in rows}) > 1
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['run']}: {row['family']}" if several_runs else str(row["family"]), []).append(row)
    for number, (label, members) in enumerate(groups.items()):
        colour, shape = _LOOKS[number % len(_LOOKS)]
        axes.errorbar(
            numbers(members, x), numbers(members, y), xerr=interval_arms(members, x), yerr=interval_arms(members, y), fmt=shape,
            color=colour, label=shorten(label, 40), markersize=6, elinewidth=0.8, alpha=0.9,
        )  # fmt: skip
    front = sorted((row for row, keep in zip(rows, best, strict=True) if keep), key=lambda row: float(row[x]))
    axes.plot(
        numbers(front, x), numbers(front, y), color=BLACK, linewidth=1.0, linestyle=":", label="non-dominated", zorder=1
    )
    axes.set_xlabel(_label(x))
    axes.set_ylabel(_label(y))
    figure.legend(loc="outside right upper")
    return figure


def _words(field: str) -> str:
    for suffix in _UNITS:
        field = field.removesuffix(suffix)
    return field.replace("_", " ").replace("slm", "SLM").replace("llm", "LLM")


def _label(field: str) -> str:
    unit = next(
        (unit for suffix, unit in _UNITS.items() if field.endswith(suffix)), "share" if "share" in field else ""
    )
    return f"{_words(field)} ({unit})" if unit else _words(field)
