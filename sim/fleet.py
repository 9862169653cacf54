"""The replicas of one tier behind a load balancer; looks like one server.

A fleet of single servers has a line per replica. One shared line in front of c servers is a SlotServer with c slots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from simpy import Event

from sim.draws import CommonDraws
from sim.job import Job
from sim.server import Server
from workloads.errors import InputError, suggest

BALANCERS = ("least-loaded", "round-robin", "random", "affinity")
_REMEMBERED_CONVERSATIONS = 100_000


class Fleet:
    """Gives each job to one replica that is up; with none up it leaves at once as `unavailable`.

    `least-loaded`: fewest jobs waiting and running, ties in turn. `round-robin`: in turn. `random`: by the uniform draw
    of (request, position) from `draws`. `affinity`: where the conversation was last, for the sake of that replica's
    prompt cache, unless it is down or has more than `affinity_slack` jobs more than the least loaded one.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        balancer: str = "least-loaded",
        *,
        draws: CommonDraws | None = None,
        affinity_slack: int = 4,
        name: str = "fleet",
    ) -> None:
        if not servers:
            raise InputError(f"fleet '{name}'", "no servers", "Give at least one replica.")
        if balancer not in BALANCERS:
            raise InputError(f"fleet '{name}': balancer", f"found '{balancer}'", suggest(balancer, BALANCERS) + ".")
        if balancer == "random" and draws is None:
            raise InputError(f"fleet '{name}': balancer", "'random' without draws", "Give the fleet its CommonDraws.")
        self.name, self.servers, self.balancer = name, tuple(servers), balancer
        self.affinity_slack = affinity_slack
        self._draws = draws
        self._single = self.servers[0] if len(self.servers) == 1 else None  # nothing to choose, for speed
        self._turn = 0  # the replica that goes first in the next round or tie
        self._homes: OrderedDict[Hashable, int] = OrderedDict()

    @property
    def up(self) -> bool:
        """True while any replica is up."""
        return any(server.up for server in self.servers)

    @property
    def queue_length(self) -> int:
        """Jobs waiting at all replicas."""
        return sum(server.queue_length for server in self.servers)

    @property
    def running(self) -> int:
        """Jobs in service at all replicas."""
        return sum(server.running for server in self.servers)

    @property
    def busy_s(self) -> float:
        """Device seconds used by all replicas so far."""
        return sum(server.busy_s for server in self.servers)

    def submit(self, job: Job) -> Event:
        """Give the job to a replica and note which in `job.replica`; returns `job.done`."""
        if self._single is not None:
            return self._single.submit(job)
        replica = self._pick(job)
        if replica is None:
            replica = 0  # any of them says `unavailable`
        job.replica = replica
        return self.servers[replica].submit(job)

    def cancel(self, job: Job) -> None:
        """Take the job back from its replica."""
        self.servers[job.replica].cancel(job)

    def crash(self) -> None:
        """Every replica goes down."""
        for server in self.servers:
            server.crash()

    def restart(self) -> None:
        """Every replica comes back, empty."""
        for server in self.servers:
            server.restart()

    def estimate_wait_s(self) -> float:
        """The shortest wait among the replicas that are up; 0 if none is, as a refusal is immediate."""
        if self._single is not None:
            return self._single.estimate_wait_s() if self._single.up else 0.0
        return min((server.estimate_wait_s() for server in self.servers if server.up), default=0.0)

    def _pick(self, job: Job) -> int | None:
        if self.balancer == "round-robin":
            return self._next_in_turn()
        if self.balancer == "random":
            return self._random(job)
        least = self._least_loaded()
        if self.balancer == "affinity" and least is not None:
            return self._home(job.conversation, least)
        return least

    def _next_in_turn(self) -> int | None:
        count = len(self.servers)
        for offset in range(count):
            replica = (self._turn + offset) % count
            if self.servers[replica].up:
                self._turn = (replica + 1) % count
                return replica
        return None

    def _random(self, job: Job) -> int | None:
        assert self._draws is not None
        up = [replica for replica, server in enumerate(self.servers) if server.up]
        return up[int(self._draws.uniform(job.request, job.position) * len(up))] if up else None

    def _least_loaded(self) -> int | None:
        servers, best, best_load = self.servers, None, 0
        replica, count = self._turn, len(self.servers)
        for _ in range(count):
            if replica >= count:
                replica = 0
            server = servers[replica]
            if server.up:
                load = server.queue_length + server.running
                if best is None or load < best_load:
                    best, best_load = replica, load
                    if not load:
                        break
            replica += 1
        if best is not None:
            self._turn = (best + 1) % count
        return best

    def _home(self, conversation: Hashable, least: int) -> int:
        homes = self._homes
        home = homes.get(conversation)
        if home is None or not self._acceptable(home, least):
            home = homes[conversation] = least
            if len(homes) > _REMEMBERED_CONVERSATIONS:
                homes.popitem(last=False)
        homes.move_to_end(conversation)
        return home

    def _acceptable(self, home: int, least: int) -> bool:
        server, other = self.servers[home], self.servers[least]
        excess = server.queue_length + server.running - other.queue_length - other.running
        return server.up and excess <= self.affinity_slack
