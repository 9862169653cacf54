"""Whether anybody is left in a tier whose calls get no answer in time, asked of Serve in the background.

With no replica left a call would only wait for its time limit, and so would every one after it; it is better refused at once. A
slow tier looks the same from outside and must not be refused. So only what a finished look found counts, and a look that does not
come back holds nobody up for long.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from threading import Lock, Thread

from workloads.errors import ModelUnavailable

_LOOK_S = 1.0
"""Between two looks, and the longest a call waits for one."""
_POLL_S = 0.005


class Lookout:
    """Remembers for any number of threads and event loops what the last look at a tier found.

    `look` returns whether a replica is up; it may take its time, and one that raises has found nothing out.
    """

    def __init__(self, tier: str, look: Callable[[], bool]) -> None:
        self._tier, self._look, self._lock = tier, look, Lock()
        self._missed_s = self._looked_s = -math.inf
        self._somebody, self._looking = True, False
        self._begun_s = -math.inf

    def missed(self) -> None:
        """A call got no answer in time."""
        self._missed_s = time.monotonic()

    def nobody(self) -> ModelUnavailable | None:
        """Why a call need not be sent; waits for a look where there is reason for one."""
        while self._waiting():
            time.sleep(_POLL_S)
        return self._refusal()

    async def nobody_async(self) -> ModelUnavailable | None:
        """As `nobody`, from an event loop."""
        while self._waiting():
            await asyncio.sleep(_POLL_S)
        return self._refusal()

    def _refusal(self) -> ModelUnavailable | None:
        return None if self._somebody else ModelUnavailable("unreachable", f"{self._tier}: no replica is up")

    def _waiting(self) -> bool:
        """Whether a look is under way that is worth waiting for. Begins one if the last does not tell what is now."""
        with self._lock:
            now = time.monotonic()
            outdated = not self._somebody or self._missed_s > self._looked_s
            if not self._looking and outdated and now - self._begun_s >= _LOOK_S:
                self._looking, self._begun_s = True, now
                # Not a pool's thread: at the end of the program it would be waited for, which with the cluster gone takes long.
                Thread(target=self._find_out, args=(now,), name=f"look-{self._tier}", daemon=True).start()
            return self._looking and now - self._begun_s < _LOOK_S

    def _find_out(self, begun_s: float) -> None:
        found: bool | None = None
        try:
            found = self._look()
        except Exception:  # nothing is known; a call that is sent finds out more
            found = None
        with self._lock:
            self._looking = False
            if found is not None:
                self._somebody, self._looked_s = found, begun_s
