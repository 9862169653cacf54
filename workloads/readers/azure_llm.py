"""Azure LLM inference traces: arrival time, prompt and answer length of every request to a service.

Source: github.com/Azure/AzurePublicDataset (CC-BY-4.0). The 2023 files (code, conv) are described in Patel et al.,
"Splitwise", ISCA 2024; the one-week files of 2024 in Stojkovic et al., "DynamoLLM", HPCA 2025.

CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens. Traps:
- 2023 times have seven fractional digits (`2023-11-16 18:17:03.9799600`), one more than datetime can hold, CRLF line
  ends and no line end after the last row; 2024 times have six and a zone (`2024-05-10 00:00:00.009930+00:00`), and none
  at all on a whole second. Times without a zone are taken as UTC.
- An absolute time held as a float is only good to 0.2 microseconds, so differences are taken in whole nanoseconds.
- The files of 2024 have tens of millions of rows: rows are streamed.
- Arrivals are bursty; there is no model, session or failure in the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from workloads.errors import InputError
from workloads.readers._rows import StrPath, csv_rows, number, place
from workloads.readers.trace_request import TraceRequest, check_order

FORMAT = "Azure LLM inference trace: CSV with TIMESTAMP, ContextTokens, GeneratedTokens"

TIME, PROMPT, OUTPUT = "TIMESTAMP", "ContextTokens", "GeneratedTokens"
SECOND = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d", re.ASCII)
REMAINDER = re.compile(r"(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
NANOSECONDS = 10**9


def read(path: StrPath) -> Iterator[TraceRequest]:
    """Yield the requests in file order; raises InputError at a row that is malformed or out of order."""
    clock = _Clock(path)
    first = previous = None
    for row, values in csv_rows(path, (TIME, PROMPT, OUTPUT)):
        time = clock.nanoseconds(values[TIME], row)
        if first is None or previous is None:
            first = previous = time
        check_order(time, previous, path, row, TIME)
        previous = time
        prompt = number(values[PROMPT], path, row, PROMPT, 0, integer=True)
        output = number(values[OUTPUT], path, row, OUTPUT, 0, integer=True)
        yield TraceRequest((time - first) / NANOSECONDS, prompt, output)


class _Clock:
    """Turns times into whole nanoseconds; it remembers the last second, as a busy trace has dozens of rows in each."""

    def __init__(self, path: StrPath) -> None:
        self._path = path
        self._second: str | None = None
        self._epoch_s = 0

    def nanoseconds(self, text: str, row: int) -> int:
        """Nanoseconds since 1970 (UTC) of a time such as `2023-11-16 18:17:03.9799600`."""
        second = text[:19]
        if second != self._second:
            self._second, self._epoch_s = second, self._parse_second(text, row)
        remainder = REMAINDER.fullmatch(text, 19)
        if remainder is None:
            raise self._refusal(text, row)
        fraction, zone = remainder.groups()
        nanoseconds = self._epoch_s * NANOSECONDS + (int(fraction.ljust(9, "0")) if fraction else 0)
        return nanoseconds - (_zone_s(zone) * NANOSECONDS if zone and zone != "+00:00" else 0)

    def _parse_second(self, text: str, row: int) -> int:
        if not SECOND.match(text):
            raise self._refusal(text, row)
        try:
            return int(datetime.fromisoformat(text[:19]).replace(tzinfo=UTC).timestamp())
        except ValueError as error:
            raise self._refusal(text, row) from error

    def _refusal(self, text: str, row: int) -> InputError:
        problem = f"{text[:40]!r} is not a time"
        return InputError(place(self._path, row, TIME), problem, "Write it as 2023-11-16 18:17:03.9799600")


def _zone_s(zone: str) -> int:
    """Seconds east of UTC of `+02:00`, `-0530` or `Z`."""
    if zone == "Z":
        return 0
    seconds = 3600 * int(zone[1:3]) + 60 * int(zone[-2:])
    return -seconds if zone[0] == "-" else seconds
