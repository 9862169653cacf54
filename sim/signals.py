"""What policies may know of the running system: queues and links as last measured, prices as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import add

from simpy import Environment, Event

from sim.cost import Charges, TierRates, charge, decision_charge
from sim.network import Route
from sim.profiles import PriceProfile
from sim.records import SubtaskRow
from sim.tier import TierRuntime

_PROBE_BYTES = 10_000.0


class LiveSignals:
    """Always fresh: asks servers and links at the moment of the decision."""

    age_s = 0.0

    def __init__(
        self, tiers: Mapping[str, TierRuntime], rates: Sequence[TierRates[float]], prices: PriceProfile,
        home_power_w: float = 0.0,
    ) -> None:  # fmt: skip
        self._tiers, self._rates, self._prices, self._home_power_w = tiers, rates, prices, home_power_w

    def wait_s(self, tier: str) -> float:
        """Expected time in the tier's queue."""
        return self._tiers[tier].fleet.estimate_wait_s()

    def transfer_s(self, tier: str, upload_bytes: float, download_bytes: float, home: int = 0) -> float:
        """Expected time on the network from a home to the tier and back."""
        up, down = self._tiers[tier].routes(home)
        return (up.estimate_s(upload_bytes) if up else 0.0) + (down.estimate_s(download_bytes) if down else 0.0)

    def service_s(self, tier: str, prompt_tokens: int, completion_tokens: int) -> float:
        """Expected prefill and decode time on an idle server of the tier."""
        return self._tiers[tier].nominal_service_s(prompt_tokens, completion_tokens)

    def cost_usd(self, attempt: SubtaskRow) -> float:
        """What an attempt has cost: every ledger item but the SLA penalty, which a request only has once it is late."""
        return self._charged(attempt)[0]

    def energy_j(self, attempt: SubtaskRow) -> float:
        """What an attempt has drawn: device and radio energy."""
        return self._charged(attempt)[1]

    def charges(self, attempt: SubtaskRow) -> Charges[float]:
        """The bill of an attempt, item by item, with what its decision drew."""
        service = self._service_bill(attempt)
        return Charges(*map(add, service, self._decision_bill(attempt))) if attempt.decision_s else service

    def _charged(self, row: SubtaskRow) -> tuple[float, float]:
        service, decision = self._service_bill(row), self._decision_bill(row)
        return float(service.total_usd + decision.total_usd), float(service.energy_j + decision.energy_j)

    def _decision_bill(self, row: SubtaskRow) -> Charges[float]:
        return decision_charge(row.decision_s, self._home_power_w, self._prices)

    def _service_bill(self, row: SubtaskRow) -> Charges[float]:
        """Service and transfer."""
        return charge(
            self._rates[row.tier], self._prices, prompt_tokens=row.prompt_tokens, cached_tokens=row.cached_tokens,
            completion_tokens=row.completion_tokens, upload_bytes=row.upload_bytes, download_bytes=row.download_bytes,
            device_s=row.device_s, served=row.prefill_s > 0 or row.status in ("ok", "escalated"),
        )  # fmt: skip


class SampledSignals(LiveSignals):
    """Measured every `period_s`, so up to that old when a policy looks.

    Transfer times are measured for a small and a large probe and interpolated linearly, as a real client would from its
    latency and bandwidth estimates.
    """

    def __init__(
        self, env: Environment, period_s: float, tiers: Mapping[str, TierRuntime], rates: Sequence[TierRates[float]],
        prices: PriceProfile, home_power_w: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(tiers, rates, prices, home_power_w)
        self._env, self._period_s = env, period_s
        self._measure(None)

    def _measure(self, _event: Event | None) -> None:
        self._taken_s = self._env.now
        self._waits = {name: LiveSignals.wait_s(self, name) for name in self._tiers}
        self._links = {
            name: [(self._probe(up), self._probe(down)) for up, down in tier.all_routes]
            for name, tier in self._tiers.items()
        }
        self._env.timeout(self._period_s).callbacks.append(self._measure)

    @staticmethod
    def _probe(route: Route | None) -> tuple[float, float]:
        """(latency s, s per byte) of a route now."""
        if route is None:
            return 0.0, 0.0
        latency_s: float = route.estimate_s(0.0)
        if math.isinf(latency_s):  # an outage: no slope can be measured
            return latency_s, 0.0
        return latency_s, (route.estimate_s(_PROBE_BYTES) - latency_s) / _PROBE_BYTES

    @property
    def age_s(self) -> float:  # type: ignore[override]
        """Seconds since the last measurement."""
        return self._env.now - self._taken_s

    def wait_s(self, tier: str) -> float:
        """The queue as it was."""
        return self._waits[tier]

    def transfer_s(self, tier: str, upload_bytes: float, download_bytes: float, home: int = 0) -> float:
        """The network as it was."""
        links = self._links[tier]
        (up_s, up_s_per_byte), (down_s, down_s_per_byte) = links[home % len(links)]
        return up_s + upload_bytes * up_s_per_byte + down_s + download_bytes * down_s_per_byte
