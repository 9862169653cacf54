"""What a run or recording has spent at its tiers' upstreams, kept in a file so that a resumed one goes on counting.

Append-only JSON lines; of each tier the last one counts:

    {"tier":"cloud","confirmed_usd":0.4821,"unconfirmed_usd":0.02,"retried":3}

`unconfirmed_usd` is the most that may have been spent beside what is confirmed. A line is written before that much is spent, so one
that a kill cut short says nothing that happened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from serve.upstream.limits import Spending
from workloads.errors import InputError


class SpendingBook:
    """Spending by tier; in the file at `path`, or without one for as long as this object lasts.

    Raises InputError for a file that cannot be used, also because another process is using it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._file = path, -1
        self._spent: dict[str, Spending] = {}
        self._limits: dict[str, float | None] = {}

    def __enter__(self) -> SpendingBook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def lasts(self) -> bool:
        """Whether what is written outlives this process."""
        return self._path is not None

    def open(self, tier: str, max_usd: float | None) -> Spending:
        """What a tier with this limit has spent before. The first call reads the file, and keeps others from it until `close`."""
        if self._path is not None and self._file < 0:
            self._open(self._path)
        self._limits[tier] = max_usd
        return self._spent.get(tier, Spending())

    def note(self, tier: str, spending: Spending) -> None:
        """Write down where a tier's spending stands; when this returns, it outlives a crash."""
        self._spent[tier] = spending
        if self._file < 0:
            return
        fields = {
            "tier": tier, "confirmed_usd": spending.confirmed_usd, "unconfirmed_usd": spending.unconfirmed_usd,
            "retried": spending.retried,
        }  # fmt: skip
        line = (json.dumps(fields) + "\n").encode()
        try:
            end = os.fstat(self._file).st_size
            if os.write(self._file, line) < len(line):
                os.ftruncate(self._file, end)
                raise OSError(28, "no space left on the device")
            os.fsync(self._file)
        except OSError as error:
            raise self._unusable(f"cannot be written ({error.strerror})", "Make room") from None

    def lines(self) -> list[str]:
        """What every tier asked in this process has spent, for people."""
        return [_line(tier, self._spent.get(tier, Spending()), max_usd) for tier, max_usd in self._limits.items()]

    def close(self) -> None:
        """Let the file go; it stays for the next time."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        """What was paid for is complete: the file goes."""
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
            self._lock()
            self._load()
        except OSError as error:
            self.close()
            raise self._unusable(f"cannot be read ({error.strerror})", "Choose another place for results") from None
        except InputError:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._unusable("another process is spending on the same run", "Let it finish, or end it") from None
        except OSError:  # a file system without locks
            return

    def _load(self) -> None:
        with os.fdopen(os.dup(self._file), "rb") as file:
            found = file.read()
        whole = found[: found.rfind(b"\n") + 1]
        os.ftruncate(self._file, len(whole))
        for line in whole.splitlines():
            try:
                fields = json.loads(line)
                confirmed_usd, unconfirmed_usd = float(fields["confirmed_usd"]), float(fields["unconfirmed_usd"])
                self._spent[str(fields["tier"])] = Spending(
                    confirmed_usd, unconfirmed_usd, retried=int(fields["retried"])
                )
            except (KeyError, TypeError, ValueError, RecursionError):
                remedy = "Ask the provider what was spent; without the file counting begins at nothing"
                raise self._unusable("holds a line that is damaged", remedy) from None

    def _unusable(self, problem: str, remedy: str) -> InputError:
        return InputError(f"{self._path} (dollars spent so far)", problem, remedy)


@contextmanager
def spending(path: Path, tell: Callable[[str], object]) -> Iterator[SpendingBook]:
    """A book for the length of a block; at its end, whatever that is, `tell` gets the lines for people."""
    with SpendingBook(path) as book:
        try:
            yield book
        finally:
            for line in book.lines():
                tell(line)


def spending_path(out: Path) -> Path:
    """Where the spending of a recording in the making lies."""
    return out.with_name(f".{out.name}.spending")


def _line(tier: str, spent: Spending, max_usd: float | None) -> str:
    line = f"upstream of tier {tier}: {spent.confirmed_usd:.4f} USD"
    if spent.unconfirmed_usd > 0:
        line += f", and at most {spent.unconfirmed_usd:.4f} more for calls whose usage never came"
    line += f"; {spent.retried:,} retries"
    return line if max_usd is None else f"{line}; limit {max_usd:g} USD"
