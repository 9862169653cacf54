"""What all figures share: colours that colour-blind readers can tell apart, units, and how a figure is saved.

Figures are made with matplotlib's object interface only, so that drawing changes no state of the program around it.
"""

from __future__ import annotations

import math
import os
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

FloatArray = npt.NDArray[np.float64]
Summary = Sequence[Mapping[str, Any]]
"""One row per variant and policy: means over requests and seeds with `_lo` and `_hi` bounds of 95 % intervals."""

# Okabe and Ito's palette, https://jfly.uni-koeln.de/color/
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
INK, SOFT, GRID = "#222222", "#595959", "#DDDDDD"

WIDTH_IN = 9.0
_DPI = 150
_STYLE: Any = {  # matplotlib types its keys as literals in some releases and as strings in others
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.8,
    "text.parse_math": False,  # names come from users and units hold dollar signs: neither is a formula
    "svg.hashsalt": "isthmus",  # the same figure is the same file
}

_Arguments = ParamSpec("_Arguments")


def styled(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Make a function that draws do so in this style, leaving matplotlib's own settings as they were."""

    @wraps(draw)
    def inner(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return inner


def new_figure(title: str, height_in: float) -> Figure:
    """An empty figure, 9 inches wide, with its title at the top left."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.suptitle(textwrap.fill(one_line(title), 86), x=0.012, ha="left")
    return figure


def darker(colour: str) -> tuple[float, float, float]:
    """A colour for small words that belong to something of this colour: with two thirds of its light, to be read on white."""
    red, green, blue = to_rgb(colour)
    return 0.65 * red, 0.65 * green, 0.65 * blue


def legend_below(figure: Figure, handles: Sequence[Artist], most_columns: int = 3) -> None:
    """A legend under the axes with as many columns as its longest label allows."""
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(most_columns, len(handles), 125 // (longest + 8)))
        figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def three_digits(value: float) -> str:
    """A number with three significant digits and no exponent: 0.0522, 1.40, 110, 1,230."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else "–"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def save_figure(figure: Figure, folder: Path, name: str) -> bytes:
    """Write `name`.png and `name`.svg, each atomically; returns the bytes of the PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, dict[str, Any]] = {"svg": {"Date": None, "Creator": "Isthmus"}, "png": {"Software": None}}
    if figure.get_layout_engine() is not None:
        lay_out(figure)
        figure.set_layout_engine("none")  # for good: both files look the same, and nothing is computed twice
    for kind in ("svg", "png"):
        partial = folder / f".{name}.{os.getpid()}.{kind}"
        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(partial, format=kind, dpi=_DPI, metadata=metadata[kind])
        os.replace(partial, folder / f"{name}.{kind}")
    return (folder / f"{name}.png").read_bytes()


def lay_out(figure: Figure) -> None:
    """Give everything its place, as if drawn."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the report spells it out in HTML.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.draw_without_rendering()


class Unit(NamedTuple):
    """How numbers of one quantity are shown: multiplied by `factor`, named `symbol`; `meaning` explains a rare symbol."""

    factor: float
    symbol: str
    meaning: str = ""

    @property
    def label(self) -> str:
        """The symbol as an axis shows it."""
        return f"{self.symbol} = {self.meaning}" if self.meaning else self.symbol


def money_unit(values: Iterable[float]) -> Unit:
    """$, m$ or µ$: whichever keeps the largest of these dollar amounts readable."""
    largest = _largest(values)
    if largest == 0 or largest >= 0.1:
        return Unit(1.0, "$")
    return Unit(1e3, "m$", "0.001 $") if largest >= 1e-4 else Unit(1e6, "µ$", "0.000001 $")


def time_unit(values: Iterable[float]) -> Unit:
    """s, min or h for spans of this many seconds."""
    largest = _largest(values)
    if largest > 3 * 3600:
        return Unit(1 / 3600, "h")
    return Unit(1 / 60, "min") if largest > 600 else Unit(1.0, "s")


def _largest(values: Iterable[float]) -> float:
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0)


def number(row: Mapping[str, Any], key: str) -> float:
    """A number of a summary row; NaN where it is missing or null."""
    value = row.get(key)
    return math.nan if value is None else float(value)


def numbers(rows: Iterable[Mapping[str, Any]], key: str) -> FloatArray:
    """One number per summary row."""
    return np.array([number(row, key) for row in rows], dtype=np.float64)


def interval_arms(rows: Sequence[Mapping[str, Any]], key: str) -> FloatArray:
    """Lengths of the interval's two arms around each estimate, shape (2, rows); 0 where a bound is unknown."""
    middle = numbers(rows, key)
    arms = np.stack([middle - numbers(rows, f"{key}_lo"), numbers(rows, f"{key}_hi") - middle])
    return np.maximum(np.nan_to_num(arms, nan=0.0, posinf=0.0, neginf=0.0), 0.0)


def variants_of(summary: Summary) -> list[str]:
    """Names of the scenario's variants in the order of the summary."""
    return list(dict.fromkeys(str(row["variant"]) for row in summary))


def of_variant(summary: Summary, variant: str) -> list[Mapping[str, Any]]:
    """The summary's rows of one variant."""
    return [row for row in summary if row["variant"] == variant]


def under(variant: str, summary: Summary) -> str:
    """Words that say which variant a figure shows; nothing where there is only one."""
    return f" ({shorten(variant, 40)})" if len(variants_of(summary)) > 1 else ""


def one_line(text: str) -> str:
    """A user's text without line breaks and other control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shorten(text: str, most: int) -> str:
    """A user's text in one line of at most `most` characters; longer ones lose their middle."""
    line = one_line(text)
    if len(line) <= most:
        return line
    end = (most - 1) // 3
    return f"{line[: most - 1 - end]}…{line[len(line) - end :]}"


def legend_label(text: str, most: int) -> str:
    """A user's text as a legend shows it: matplotlib hides labels that begin with an underscore."""
    line = shorten(text, most)
    return f" {line}" if line.startswith("_") else line


def cut(text: str, most: int) -> str:
    """A sentence in one line of at most `most` characters; a longer one loses its end."""
    line = one_line(text)
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def is_wide(values: FloatArray, ratio: float) -> bool:
    """Whether positive values span more than this ratio, so that a logarithmic axis shows them better."""
    positive = values[np.isfinite(values) & (values > 0)]
    return bool(positive.size) and bool(positive.max() / positive.min() > ratio)


def log_x(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers at 1, 2 and 5 of each decade, or at 1 only where there are many."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3.5 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def stacked_bars(axes: Axes, lengths: Mapping[str, FloatArray], colours: Mapping[str, str]) -> list[Artist]:
    """Horizontal bars, first at the top, each a stack of `lengths[part]`, with its total at the end; returns the legend."""
    count = len(next(iter(lengths.values())))
    places = np.arange(count, dtype=np.float64)
    left = np.zeros(count)
    handles: list[Artist] = []
    for part, values in lengths.items():
        colour = colours[part]
        axes.barh(places, values, left=left, height=0.72, color=colour, label=part, edgecolor="white", linewidth=0.5)
        handles.append(Patch(color=colour, label=part))
        left = left + values
    for place, total in zip(places, left, strict=True):
        axes.annotate(
            three_digits(total), (total, place), (4, 0), textcoords="offset points", va="center_baseline", fontsize=9
        )
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlim(0, max(float(left.max(initial=0.0)) * 1.1, 1e-12))
    axes.grid(visible=False, axis="y")
    return handles
