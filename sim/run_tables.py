"""What a finished run hands to its report: record tables read from result files, nothing of the simulation itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.records import Columns

SubtaskLoader = Callable[[str, str, int], Columns]
"""(variant, policy, seed) -> the subtask table of that cell."""


class RunTables(NamedTuple):
    """The records of a run with several cells, a cell being one variant of the scenario under one policy and one seed.

    `requests` has one row per request of all cells: the columns `variant`, `policy`, `knob` and `seed` of its cell, those
    of `RequestRow`, then `latency_s`, LEDGER_ITEMS, `sla_usd`, `total_usd`, `energy_j` and `carbon_g`. `subtasks` loads
    one cell's table when it is needed, as a run may have more rows than fit into memory. The rest is by tier, in the order
    of the scenario: names, roles (`slm` or `llm`) and how many requests can be served at once (may be infinite).
    """

    requests: Columns
    subtasks: SubtaskLoader
    tiers: tuple[str, ...]
    roles: tuple[str, ...]
    slots: tuple[float, ...]

    def of_policy(self, variant: str, policy: str) -> dict[str, npt.NDArray[Any]]:
        """The requests of one policy under one variant, all seeds."""
        rows = (self.requests["variant"] == variant) & (self.requests["policy"] == policy)
        return {name: column[rows] for name, column in self.requests.items()}

    def title_of_cell(self, variant: str, policy: str, seed: int) -> str:
        """A cell in words, without the variant where there is only one."""
        several = len(set(self.requests["variant"])) > 1
        return f"{policy}, {f'{variant}, ' if several else ''}seed {seed}"

    def of_cell(self, variant: str, policy: str, seed: int) -> dict[str, npt.NDArray[Any]]:
        """The requests of one cell."""
        requests = self.of_policy(variant, policy)
        rows = requests["seed"] == seed
        return {name: column[rows] for name, column in requests.items()}

    def seeds(self, variant: str, policy: str) -> list[int]:
        """Seeds of a policy under a variant, in rising order."""
        return [int(seed) for seed in np.unique(self.of_policy(variant, policy)["seed"])]
