"""Bandwidth over time in a CSV file whose column names say their units, as drive tests and monitors write it.

Source: no one standard. The tables below list the names taken without being told, among them those of the Irish 4G and 5G
data sets of University College Cork (`Timestamp`, `DL_bitrate` in kbit/s; Raca et al., MMSys 2018 and 2020) and of the
FCC's raw files (`bytes_sec`).

Traps
- A name without a unit cannot be guessed: give `bandwidth_column="Throughput:Mbit/s"`. "MB/s" is bytes, "Mbit/s" bits.
- `timestamp`, `time` and `datetime` hold either seconds or a date and time; dates without a zone are taken as UTC.
  Seconds above 10^11 are milliseconds or finer, which must be said: `time_column="timestamp:ms"`.
- Value i holds over [t[i], t[i+1]), the last for the median step. Clocks of whole seconds repeat, and some step back: the
  rows that span no time are left out of the integral and reported in `non_increasing_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from workloads.errors import InputError, suggest
from workloads.readers._rows import StrPath, csv_rows, number, place
from workloads.readers._samples import SampledTrace, from_samples

FORMAT = "Bandwidth CSV: named columns with units, such as time_s,bandwidth_mbps or Timestamp,DL_bitrate"

CLOCK = "s or date"
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, CLOCK: 1.0, "date": 1.0}
"""Unit of a time: seconds per unit. "date" is ISO 8601 or 2019.11.28_07.27.23."""

BIT_UNITS = {
    "bit/s": 1e-6,
    "kbit/s": 1e-3,
    "Mbit/s": 1.0,
    "Gbit/s": 1e3,
    "bps": 1e-6,
    "kbps": 1e-3,
    "Mbps": 1.0,
    "Gbps": 1e3,
}
BYTE_UNITS = {"B/s": 8e-6, "kB/s": 8e-3, "MB/s": 8.0, "GB/s": 8e3}
BANDWIDTH_UNITS = {**BIT_UNITS, **BYTE_UNITS, "mbps": 1.0, "gbps": 1e3, "Kbps": 1e-3, "Kbit/s": 1e-3, "KB/s": 8e-3}
"""Unit of a bandwidth: Mbit/s per unit. Upper and lower case matter; powers are of 1000."""

TIME_COLUMNS: Mapping[str, str] = {
    **{f"{name}_{unit}": unit for name in ("time", "timestamp", "t", "elapsed") for unit in ("s", "ms", "us", "ns")},
    **dict.fromkeys(("seconds", "time_sec", "time_seconds", "elapsed_seconds"), "s"),
    **dict.fromkeys(("milliseconds", "time_msec"), "ms"),
    **dict.fromkeys(("timestamp", "time", "datetime", "dtime"), CLOCK),
}
"""Names of time columns taken without being told (in any case), with their units."""

BANDWIDTH_COLUMNS: Mapping[str, str] = {
    **{
        f"{name}_{unit}": unit
        for name in ("bandwidth", "throughput", "bitrate", "rate", "download", "downlink", "capacity")
        for unit in ("bps", "kbps", "mbps", "gbps")
    },
    **{unit: unit for unit in ("bps", "kbps", "mbps", "gbps")},
    **dict.fromkeys(("bytes_per_s", "bytes_per_second", "bytes_per_sec", "bytes_sec"), "B/s"),
    **dict.fromkeys(("bits_per_s", "bits_per_second", "bits_per_sec"), "bit/s"),
    "dl_bitrate": "kbps",
}
"""Names of bandwidth columns taken without being told (in any case), with their units."""

LARGEST_SECONDS = 1e11  # the year 5138; today's milliseconds since 1970 are seventeen times as many


def read(path: StrPath, time_column: str | None = None, bandwidth_column: str | None = None) -> SampledTrace:
    """Read one trace; each column is found by its name or given as "column:unit" (or "column", if its name is known).

    Raises InputError naming the columns found and the units known, or the row and column of a wrong value.
    """
    rows: list[int] = []
    times_s: list[float] = []
    mbps: list[float] = []
    columns: tuple[str, str] | None = None
    for row, values in csv_rows(path, required=()):
        if columns is None:
            time, time_unit = _column(path, tuple(values), "time", time_column, TIME_COLUMNS, TIME_UNITS)
            rate, rate_unit = _column(
                path, tuple(values), "bandwidth", bandwidth_column, BANDWIDTH_COLUMNS, BANDWIDTH_UNITS
            )
            columns = time, rate
            seconds = _time_reader(path, row, time, time_unit, values[time])
        rows.append(row)
        times_s.append(seconds(values[time], row))
        mbps.append(number(values[rate], path, row, rate, minimum=0) * BANDWIDTH_UNITS[rate_unit])
    return from_samples(path, rows, times_s, mbps, covers="after")


def _column(
    path: StrPath,
    found: tuple[str, ...],
    kind: str,
    given: str | None,
    known: Mapping[str, str],
    units: Mapping[str, float],
) -> tuple[str, str]:
    """The name and unit of one column of the file."""
    if given is not None:
        return _given_column(path, found, kind, given, known, units)
    matches = [name for name in found if name.casefold() in known]
    if len(matches) == 1:
        return matches[0], known[matches[0].casefold()]
    listed = ", ".join(map(repr, matches or found))
    problem = f"several columns could be the {kind}: {listed}" if matches else f"no {kind} column among {listed}"
    example = f'{kind}_column="{(matches or found)[-1]}:{next(iter(units))}"'
    remedy = f"Say which, with its unit, as in {example}. Units: {', '.join(units)}"
    if not matches:
        remedy += f". Names known without a unit: {', '.join(known)}"
    raise InputError(place(path, 1), problem, remedy)


def _given_column(
    path: StrPath, found: tuple[str, ...], kind: str, given: str, known: Mapping[str, str], units: Mapping[str, float]
) -> tuple[str, str]:
    name, colon, unit = (given, "", "") if given in found else given.rpartition(":")
    if not colon:
        name, unit = given, known.get(given.casefold(), "")
    if name not in found:
        raise InputError(place(path, 1, name), f"there is no such {kind} column", suggest(name, found))
    if unit not in units:
        problem = f"{unit!r} is not a unit of {kind}" if unit else f"the name does not say its unit of {kind}"
        remedy = f'Give "{name}:unit". {suggest(unit, units)}'
        raise InputError(place(path, 1, name), problem, remedy)
    return name, unit


def _time_reader(path: StrPath, row: int, column: str, unit: str, first: str) -> Callable[[str, int], float]:
    """The function that turns one value of the time column into seconds; the first value settles "s or date"."""
    if unit == "date" or (unit == CLOCK and _as_date(first) is not None):
        return lambda text, row: _date_s(text, path, row, column)
    if unit == CLOCK and number(first, path, row, column) > LARGEST_SECONDS:
        problem = f"{first} is too large for seconds"
        raise InputError(place(path, row, column), problem, f'Say its unit, as in time_column="{column}:ms"')
    return lambda text, row: number(text, path, row, column) * TIME_UNITS[unit]


def _date_s(text: str, path: StrPath, row: int, column: str) -> float:
    date = _as_date(text)
    if date is None:
        remedy = "Give a date and time such as 2019-11-28T07:27:23 or 2019.11.28_07.27.23"
        raise InputError(place(path, row, column), f"{text[:40]!r} is no date and time", remedy)
    return date.timestamp()


def _as_date(text: str) -> datetime | None:
    text = text.strip()
    if text.replace(".", "", 1).isdigit():
        return None  # seconds; "20191128" would also pass as a date of ISO 8601
    for parse in (datetime.fromisoformat, lambda value: datetime.strptime(value, "%Y.%m.%d_%H.%M.%S")):
        try:
            date = parse(text)
        except ValueError:
            continue
        return date if date.tzinfo else date.replace(tzinfo=UTC)
    return None
