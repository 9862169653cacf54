"""A link's bandwidth over time, as a recording or a generator gives it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from workloads.errors import InputError


@dataclass(frozen=True, eq=False)
class BandwidthTrace:
    """Piecewise constant bandwidth that repeats for ever: `mbps[i]` (Mbit/s) holds for `durations_s[i]` seconds.

    Both arrays have shape (n,) and are read-only copies of what was given. Every duration is above 0, every bandwidth at
    least 0 and one of them above 0, so that any transfer ends. `source` names where the values come from. Raises
    InputError, which names the first wrong value.
    """

    durations_s: npt.NDArray[np.float64]
    mbps: npt.NDArray[np.float64]
    source: str

    def __post_init__(self) -> None:
        durations_s = self._checked("durations_s", self.durations_s)
        mbps = self._checked("mbps", self.mbps)
        if len(durations_s) != len(mbps):
            problem = f"has {len(durations_s)} durations but {len(mbps)} bandwidths"
            raise InputError(self.source, problem, "Give every bandwidth the time it holds")
        self._refuse("durations_s", durations_s, durations_s <= 0, "Give every bandwidth a time above 0 seconds")
        self._refuse("mbps", mbps, mbps < 0, "Give bandwidths of at least 0 Mbit/s")
        if not mbps.any():
            raise InputError(
                f"{self.source}: field 'mbps'", "no bandwidth is above 0", "Give at least one: nothing could be sent"
            )
        with np.errstate(over="ignore"):
            if not math.isfinite(durations_s.sum()) or not math.isfinite(durations_s @ mbps):
                raise InputError(self.source, "its sums overflow", "Give times in seconds and bandwidths in Mbit/s")
        object.__setattr__(self, "durations_s", durations_s)
        object.__setattr__(self, "mbps", mbps)

    def _checked(self, field: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """A read-only copy, so that no holder of the given array can change a frozen value."""
        try:
            copy = np.array(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.source}: field '{field}'", "is not a list of numbers", "Give numbers") from error
        if copy.ndim != 1 or not copy.size:
            shape = f"has the shape {copy.shape}"
            raise InputError(f"{self.source}: field '{field}'", shape, "Give one list of at least one number")
        self._refuse(field, copy, ~np.isfinite(copy), "Give finite numbers")
        copy.flags.writeable = False
        return copy

    def _refuse(self, field: str, values: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_], remedy: str) -> None:
        if wrong.any():
            first = int(np.argmax(wrong))
            where = f"{self.source}: element {first + 1} of field '{field}'"
            raise InputError(where, f"found {values[first]:g}", remedy)

    @property
    def period_s(self) -> float:
        """Seconds after which the trace starts again."""
        return float(self.durations_s.sum())

    @property
    def mean_mbps(self) -> float:
        """Mean over time in Mbit/s: what one period carries, over its length."""
        return float(self.durations_s @ self.mbps) / self.period_s

    def scaled(self, factor: float) -> Self:
        """The same trace with every bandwidth times `factor` (> 0)."""
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(f"{self.source}: scale", f"found {factor:g}", "Give a factor above 0")
        return replace(self, mbps=self.mbps * factor)
