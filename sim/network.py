"""Routes over links: from an agent's home to a tier, over no hop, one or several."""

from __future__ import annotations

from collections.abc import Sequence

from simpy import Environment, Event

from sim.environment import fire
from sim.link import Link

__all__ = ["Link", "Route"]


class Route:
    """The links from an agent's home to a tier, in order; each hop stores the whole transfer and forwards it.

    No links means the same place: transfers are there at once. One link costs no event of its own.
    """

    def __init__(self, env: Environment, links: Sequence[Link]) -> None:
        self.links = tuple(links)
        self._env = env
        self._only = links[0] if len(links) == 1 else None
        self._here = Event(env)  # has already happened, so a process that yields it goes straight on
        self._here._ok, self._here._value = True, None
        self._here.callbacks = None  # type: ignore[assignment]

    @property
    def rate_mbps(self) -> float:
        """The rate of the slowest hop now."""
        if self._only is not None:
            return self._only.rate_mbps
        return min(link.rate_mbps for link in self.links)

    @property
    def propagation_s(self) -> float:
        """One-way propagation over all hops."""
        return sum(link.propagation_s for link in self.links)

    def transfer(self, size_bytes: float, request: int, position: int) -> Event:
        """Start sending; the event happens when the last byte has arrived at the last hop's far end."""
        if self._only is not None:
            return self._only.transfer(size_bytes, request, position)
        if not self.links:
            return self._here
        return _Journey(self._env, self.links, size_bytes, request, position)

    def cancel(self, event: Event) -> None:
        """Give up a transfer of this route: its share is free at once and the event never happens."""
        if isinstance(event, _Journey):
            event.cancel()
        elif self._only is not None:
            self._only.cancel(event)

    def estimate_s(self, size_bytes: float) -> float:
        """Seconds a transfer started now would take if nothing changed; see `Link.estimate_s`."""
        if self._only is not None:
            return self._only.estimate_s(size_bytes)
        return sum(link.estimate_s(size_bytes) for link in self.links)


class _Journey(Event):
    """A transfer over several hops; happens when it has arrived at the end of the last."""

    def __init__(
        self, env: Environment, links: tuple[Link, ...], size_bytes: float, request: int, position: int
    ) -> None:
        super().__init__(env)
        self._links, self._hop, self._slot = links, 0, (size_bytes, request, position)
        self._leg = self._start_leg()

    def cancel(self) -> None:
        """Stop at the present hop."""
        self._links[self._hop].cancel(self._leg)

    def _start_leg(self) -> Event:
        leg = self._links[self._hop].transfer(*self._slot)
        leg.callbacks.append(self._arrive)
        return leg

    def _arrive(self, leg: Event) -> None:
        if self._hop + 1 == len(self._links):
            fire(self)
        else:
            self._hop += 1
            self._leg = self._start_leg()
