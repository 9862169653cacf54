"""One request of a recorded arrival trace, whatever public format it came from."""

from __future__ import annotations

from typing import NamedTuple

from workloads.errors import InputError
from workloads.readers._rows import StrPath, place


class TraceRequest(NamedTuple):
    """When a request arrived and how many tokens it carried.

    `time_s` counts from the trace's first row, so the first request is at 0. `prefix_blocks` are content hashes of the
    prompt's leading blocks. `failed` marks requests that got no answer: they arrived and loaded the system all the same.
    `elapsed_s` is the recorded seconds from submission to the complete answer. What a format does not record keeps its
    default.
    """

    time_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_blocks: tuple[int, ...] = ()
    failed: bool = False
    session: str = ""
    model: str = ""
    kind: str = ""
    elapsed_s: float | None = None


def check_order(time: float, previous: float, path: StrPath, row: int, column: str) -> None:
    """Refuse a row that arrives before the row above it; equal times are a burst and stay.

    Sorting here would need the whole trace in memory, and every published trace is already in order.
    """
    if time < previous:
        problem = "arrives before the row above it"
        raise InputError(place(path, row, column), problem, f"Sort the rows by '{column}', or fix this one")
