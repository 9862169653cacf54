"""Mooncake: requests to the Kimi chat service with the ids of the prompt blocks they share.

Source: github.com/kvcache-ai/Mooncake (Apache-2.0), the traces of Qin et al., "Mooncake: Trading More Storage for Less
Computation", FAST 2025.

JSON Lines; each line has timestamp, input_length, output_length and hash_ids. Traps:
- Timestamps are milliseconds and come in bursts every few seconds: many requests share one.
- hash_ids are ids of 512-token blocks of the prompt. Two prompts share as many leading blocks as their lists agree, so
  the order of the ids matters; the last block may be partly filled, so there are ceil(input_length / 512) of them.
- Traces by others borrow the format with blocks of another size: say so, or shared prefixes are counted wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workloads.errors import InputError
from workloads.readers._fields import number_field, require_fields
from workloads.readers._rows import StrPath, json_kind, json_lines, place
from workloads.readers.trace_request import TraceRequest, check_order

FORMAT = "Mooncake trace: JSON Lines with timestamp (ms), input_length, output_length, hash_ids"

BLOCK_TOKENS = 512
TIME, PROMPT, OUTPUT, BLOCKS = "timestamp", "input_length", "output_length", "hash_ids"


def read(path: StrPath, block_tokens: int = BLOCK_TOKENS) -> Iterator[TraceRequest]:
    """Yield the requests in file order; raises InputError at a line that is malformed or out of order.

    `block_tokens` is the size of a hashed block in tokens. One block more or less than the prompt needs is accepted,
    as traces differ in whether they hash the last, partly filled one.
    """
    first = previous = None
    for row, values in json_lines(path):
        require_fields(values, (TIME, PROMPT, OUTPUT, BLOCKS), path, row)
        time_ms = number_field(values[TIME], TIME, path, row, 0)
        if first is None or previous is None:
            first = previous = time_ms
        check_order(time_ms, previous, path, row, TIME)
        previous = time_ms
        prompt = number_field(values[PROMPT], PROMPT, path, row, 0, integer=True)
        output = number_field(values[OUTPUT], OUTPUT, path, row, 0, integer=True)
        blocks = _blocks(values[BLOCKS], prompt, block_tokens, path, row)
        yield TraceRequest((time_ms - first) / 1000, prompt, output, blocks)


def _blocks(value: Any, prompt_tokens: int, block_tokens: int, path: StrPath, row: int) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(block) is not int for block in value):
        problem = f"{json_kind(value)} is not a list of whole numbers"
        raise InputError(place(path, row, BLOCKS), problem, "Give the ids of the prompt's blocks, such as [0, 1, 2]")
    needed = -(-prompt_tokens // block_tokens)
    if abs(len(value) - needed) > 1:
        problem = f"{len(value)} blocks of {block_tokens} tokens do not make a prompt of {prompt_tokens} tokens"
        raise InputError(place(path, row, BLOCKS), problem, f"Give about {needed} ids, or name the size of the blocks")
    return tuple(value)
