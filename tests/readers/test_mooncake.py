from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workloads.errors import InputError
from workloads.readers import mooncake
from workloads.readers.trace_request import TraceRequest

Find = Callable[[str], Path]


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    """A trace of these rows."""
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(timestamp: float, prompt: int, blocks: list[int]) -> dict[str, Any]:
    """One request as the format writes it."""
    return {"timestamp": timestamp, "input_length": prompt, "output_length": 5, "hash_ids": blocks}


def test_reads_every_request_of_the_real_trace(shared_data: Find) -> None:
    """3,993 requests over 1,022 s; each has exactly the blocks that its prompt fills."""
    requests = list(mooncake.read(shared_data("llm_arrivals/mooncake_synthetic.jsonl")))
    assert len(requests) == 3993
    assert requests[0] == TraceRequest(0.0, 40160, 6, tuple(range(79)))
    assert requests[-1].time_s == 1022.025
    assert all(len(r.prefix_blocks) == -(-r.prompt_tokens // mooncake.BLOCK_TOKENS) for r in requests)


def test_real_prompts_share_prefixes(shared_data: Find) -> None:
    """Most blocks of the real trace were seen before at the same place, or prompt caching would have nothing to do."""
    seen: set[tuple[int, int]] = set()
    shared = total = 0
    for request in mooncake.read(shared_data("llm_arrivals/mooncake_synthetic.jsonl")):
        blocks = list(enumerate(request.prefix_blocks))
        shared += sum(block in seen for block in blocks)
        total += len(blocks)
        seen.update(blocks)
    assert 0.5 < shared / total < 1


def test_times_are_milliseconds_from_the_first_row(tmp_path: Path) -> None:
    """A trace that starts late starts at 0, and requests of the same burst share a time."""
    path = write(tmp_path, row(27000, 1000, [0, 1]), row(27000, 512, [0]), row(30500, 513, [0, 2]))
    assert list(mooncake.read(path)) == [
        TraceRequest(0.0, 1000, 5, (0, 1)),
        TraceRequest(0.0, 512, 5, (0,)),
        TraceRequest(3.5, 513, 5, (0, 2)),
    ]


def test_blocks_of_another_size_must_be_named(tmp_path: Path) -> None:
    """Sixteen-token blocks read as 512-token ones would make every shared prefix 32 times too long."""
    path = write(tmp_path, row(0, 160, list(range(10))))
    assert [request.prefix_blocks for request in mooncake.read(path, block_tokens=16)] == [tuple(range(10))]
    with pytest.raises(InputError, match="row 1, column 'hash_ids': 10 blocks of 512 tokens"):
        list(mooncake.read(path))


def test_blank_lines_hold_no_row_but_count(tmp_path: Path) -> None:
    """Row numbers are physical lines, so an editor finds them."""
    path = tmp_path / "trace.jsonl"
    good = json.dumps(row(0, 10, [0]))
    path.write_text(f"{good}\n\n{good}\n[]\n", encoding="utf-8")
    requests = mooncake.read(path)
    assert [next(requests).time_s, next(requests).time_s] == [0.0, 0.0]
    with pytest.raises(InputError, match="row 4"):
        next(requests)
