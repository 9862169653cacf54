"""BurstGPT: months of requests to a university's ChatGPT and GPT-4 service, with failures and, later, sessions.

Source: github.com/HPMLL/BurstGPT (CC-BY-4.0); Wang et al., "BurstGPT: A Real-World Workload Dataset to Optimize LLM
Serving Systems", KDD 2025.

CSV. The first files have the columns Timestamp, Model, Request tokens, Response tokens, Total tokens, Log Type. Traps:
- Later files put Session ID and Elapsed time in between, after Timestamp: columns are found by name, never by position.
- Timestamp counts seconds from midnight of the collection's first day, so a later file starts at millions of seconds.
- A failure has zero response tokens (often zero request tokens too). It is kept and marked: the request did arrive.
- Session ID is blank on every API row; only conversations have one.
- Elapsed time runs to the complete answer; it is not the time to the first token. It is passed on as recorded.
- Total tokens repeats the sum of the other two, so it is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.readers._rows import StrPath, csv_rows, number
from workloads.readers.trace_request import TraceRequest, check_order

FORMAT = "BurstGPT trace: CSV with Timestamp, Model, Request tokens, Response tokens and optional Session ID"

TIME, MODEL, PROMPT, OUTPUT = "Timestamp", "Model", "Request tokens", "Response tokens"
SESSION, ELAPSED, KIND = "Session ID", "Elapsed time", "Log Type"
ALIASES = {SESSION: ("SessionID",)}


def read(path: StrPath) -> Iterator[TraceRequest]:
    """Yield the requests in file order, failures included; raises InputError at a malformed or misplaced row."""
    first = previous = None
    for row, values in csv_rows(path, (TIME, MODEL, PROMPT, OUTPUT), ALIASES):
        time_s = number(values[TIME], path, row, TIME, 0)
        if first is None or previous is None:
            first = previous = time_s
        check_order(time_s, previous, path, row, TIME)
        previous = time_s
        output = number(values[OUTPUT], path, row, OUTPUT, 0, integer=True)
        elapsed = values.get(ELAPSED, "").strip()
        yield TraceRequest(
            time_s=time_s - first,
            prompt_tokens=number(values[PROMPT], path, row, PROMPT, 0, integer=True),
            output_tokens=output,
            failed=output == 0,
            session=values.get(SESSION, "").strip(),
            model=values[MODEL].strip(),
            kind=values.get(KIND, "").strip(),
            elapsed_s=number(elapsed, path, row, ELAPSED) if elapsed else None,
        )
