"""What a simulation leaves behind: two flat, columnar tables from which every metric and figure is computed.

`subtasks` has one row per attempt at a subtask (a retry after a 429 is a row of its own), `requests` one row per request.
For an attempt, `start_s + backoff_s + tool_s + decision_s + uplink_s + queue_s + prefill_s + decode_s + downlink_s = end_s`
exactly as far as it got, so latency breakdowns add up to latencies.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Columns = Mapping[str, npt.NDArray[Any]]
_CHUNK_ROWS = 1_024


class SubtaskRow(NamedTuple):
    """One attempt at one subtask, as the event loop saw it. Times in virtual seconds, `tier` as an index."""

    request: int
    position: int
    attempt: int
    tier: int
    replica: int
    status: str  # ok, escalated (done again elsewhere), rejected (429), unavailable, crashed, oversized, timeout, attempt-timeout, abandoned
    provenance: str  # exact, live, modelled
    start_s: float
    backoff_s: float
    tool_s: float
    decision_s: float
    uplink_s: float
    queue_s: float
    prefill_s: float
    decode_s: float
    downlink_s: float
    end_s: float
    ttft_s: float  # from start_s to the first token at the agent; NaN if none came
    device_s: float  # this subtask's share of the serving device's busy time
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    upload_bytes: float
    download_bytes: float
    reason: str  # why the policy chose this tier, in its own words
    score: float = math.nan  # the grade of this answer alone; NaN where it has none


class RequestRow(NamedTuple):
    """One request from arrival to its end."""

    request: int
    task_id: str
    task_family: str
    home: int  # the user's device it arrived on
    arrival_s: float
    end_s: float
    ttft_s: float
    subtasks: int
    slm_subtasks: int
    score: float  # 0 for a request that did not complete
    status: str  # completed, timeout, failed
    reason: str  # why it did not complete
    provenance: str  # the least exact of its answers; empty where none came


_NUMPY = {"int": np.int32, "float": np.float64, "str": object}
_STRUCT = {"int": "i", "float": "d"}


def _kinds(row: type) -> dict[str, str]:
    return {name: kind.__name__ for name, kind in get_type_hints(row).items()}


SUBTASK_KINDS = _kinds(SubtaskRow)
REQUEST_KINDS = _kinds(RequestRow)


class RowTable:
    """Collects rows of one kind and turns them into columns chunk by chunk, so that rows never pile up."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self._kinds = kinds
        self._rows: list[tuple[Any, ...]] = []
        self._chunks: list[list[npt.NDArray[Any]]] = []
        self.last: tuple[Any, ...] | None = None

    def append(self, row: tuple[Any, ...]) -> None:
        """Keep one row."""
        rows = self._rows
        rows.append(row)
        if len(rows) >= _CHUNK_ROWS:
            self._flush()

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All rows so far as one array per column."""
        self._flush()
        return {
            name: np.concatenate([chunk[i] for chunk in self._chunks]) if self._chunks else np.empty(0, _NUMPY[kind])
            for i, (name, kind) in enumerate(self._kinds.items())
        }

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        kinds = self._kinds.values()
        self._chunks.append([_array(c, k) for c, k in zip(columns, kinds, strict=True)])
        self._rows.clear()


def _array(column: tuple[Any, ...], kind: str) -> npt.NDArray[Any]:
    """A column as an array; `struct` packs numbers three times as fast as NumPy converts them."""
    if kind == "str":
        return np.fromiter(column, object, len(column))
    return np.frombuffer(struct.pack(f"{len(column)}{_STRUCT[kind]}", *column), _NUMPY[kind])


class Records(NamedTuple):
    """The two tables of one simulated cell as columns of equal length."""

    subtasks: dict[str, npt.NDArray[Any]]
    requests: dict[str, npt.NDArray[Any]]


def to_arrow(columns: Columns, constants: Mapping[str, Any] | None = None) -> pa.Table:
    """Columns as an Arrow table; `constants` (variant, policy, seed) become columns of one repeated value."""
    arrays: dict[str, pa.Array] = {}
    rows = len(next(iter(columns.values())))
    for name, value in (constants or {}).items():
        repeated = pa.array([value] * rows, pa.string()) if isinstance(value, str) else pa.array(np.full(rows, value))
        arrays[name] = repeated.dictionary_encode() if isinstance(value, str) else repeated
    for name, column in columns.items():
        arrays[name] = pa.array(column, pa.string()).dictionary_encode() if column.dtype == object else pa.array(column)
    return pa.table(arrays)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write atomically: a reader or a killed run never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, path)


def read_columns(paths: Iterable[Path], columns: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Read Parquet files of one table back into columns, in the order of the paths."""
    tables = [pq.read_table(path, columns=list(columns) if columns else None) for path in paths]
    table = pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()
    return {name: _to_numpy(table[name]) for name in table.column_names}


def _to_numpy(chunked: pa.ChunkedArray) -> npt.NDArray[Any]:
    column: npt.NDArray[Any] = chunked.to_numpy(zero_copy_only=False)
    return column
