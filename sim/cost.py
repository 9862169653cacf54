"""The ledger: what one attempt at a subtask costs, item by item.

There is one arithmetic, `charge`. A policy or a learner calls it with floats for the subtask at hand, `ledger` calls it
with the columns of the whole subtask table, so a budget is spent in the same money that the report counts.

What does not belong to a tier has a function of its own: the energy of decisions (`decision_charge`), the static power of
idle devices (`sim.energy.idle_energy_j`) and SLA penalties (`sla_penalties`, per request).
"""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Generic, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.energy import G_PER_TONNE, Quantity, carbon_g, device_energy_j, electricity_usd, radio_energy_j
from sim.profiles import DeviceProfile, LinkProfile, PriceProfile
from sim.records import Columns
from workloads.errors import suggest
from workloads.task import fast_constructor

LEDGER_ITEMS = (
    "api_input_usd",
    "api_cached_usd",
    "api_output_usd",
    "transfer_usd",
    "energy_usd",
    "hardware_usd",
    "carbon_usd",
)
"""The money items of an attempt, which add up to its `total_usd`, in the order of reports."""

_SECONDS_PER_YEAR = 365.25 * 86_400.0
_BYTES_PER_MBYTE = 1e6
_BYTES_PER_GBYTE = 1e9
_TOKENS_PER_MTOK = 1_000_000


class TokenPrices(NamedTuple):
    """API prices, $ per token. All zero for own hardware."""

    input_usd: float = 0.0
    cached_input_usd: float = 0.0
    output_usd: float = 0.0


@lru_cache(maxsize=1024)
def token_prices(price_name: str | None, on: datetime.date) -> TokenPrices:
    """API prices of `provider/model` as they were on a day, from the price library's own offline table; None: free.

    The library lists a model's oldest price without a beginning and later ones with the day they started: a day before
    the first recorded change gets the oldest price, even if the model did not exist yet, because the library does not
    know when models were launched. Where the price depends on the hour, noon UTC counts; where it depends on the
    prompt's length, the base tier (short prompts). A model without a discount for cached input pays the full input
    price for it. Not included: surcharges for writing a cache, and fees per request, search or image.

    Raises ValueError, naming the nearest names, for a name the library does not have or does not price per token.
    """
    if price_name is None:
        return TokenPrices()
    # Imported here: reading the library's table takes 0.4 s, which runs without API prices need not wait for.
    from genai_prices import Usage, calc_price

    provider, _, model = price_name.partition("/")
    noon = datetime.datetime.combine(on, datetime.time(12), datetime.UTC)
    usage = Usage(input_tokens=0, output_tokens=0)
    try:
        found = calc_price(usage, model, provider_id=provider, genai_request_timestamp=noon).model_price
    except LookupError:
        raise ValueError(_unknown_price(price_name, provider, model)) from None
    input_usd, output_usd = _usd_per_token(found.input_mtok), _usd_per_token(found.output_mtok)
    if input_usd is None or output_usd is None:
        raise ValueError(f"{price_name!r} has no price per input and output token in the price library")
    cached_usd = _usd_per_token(found.cache_read_mtok)
    return TokenPrices(input_usd, input_usd if cached_usd is None else cached_usd, output_usd)


def _usd_per_token(price: Any) -> float | None:
    """A price per 1e6 tokens (Decimal, or tiers with a `base`) as $ per token."""
    base = getattr(price, "base", price)
    return None if base is None else float(base / _TOKENS_PER_MTOK)


def _unknown_price(price_name: str, provider: str, model: str) -> str:
    from genai_prices.data import providers

    models = {
        p.id: [m.id for m in p.models if m.is_match(m.id)] for p in providers
    }  # only names that can be found again
    if provider not in models:
        return (
            f"no API price for {price_name!r}: a price is named provider/model, and {provider!r} is no provider. "
            + suggest(provider, models)
        )
    near = difflib.get_close_matches(model, models[provider], n=5, cutoff=0.0)
    return f"no API price for {price_name!r}. Nearest of {provider}'s {len(models[provider])} models: {', '.join(near)}"


@dataclass(frozen=True)
class TierRates(Generic[Quantity]):
    """What using a tier costs per token, second and byte. Floats for one tier; columns, one entry per attempt, in `ledger`."""

    input_usd_per_token: Quantity
    cached_input_usd_per_token: Quantity
    output_usd_per_token: Quantity
    static_power_w: Quantity
    dynamic_power_w: Quantity
    hardware_usd_per_s: Quantity
    energy_up_j_per_byte: Quantity
    energy_down_j_per_byte: Quantity
    transfer_usd_per_byte: Quantity


def tier_rates(
    device: DeviceProfile | None, prices: TokenPrices, hops: Sequence[LinkProfile], price_profile: PriceProfile
) -> TierRates[float]:
    """The rates of a tier from its profiles.

    A device's price is spread over the busy part of its life: price / (lifetime x utilisation), $ per busy second. A byte
    pays on every hop of the route. `device` is None for an endpoint, whose hardware and power are in its token prices.
    """
    static_w = dynamic_w = hardware_usd_per_s = 0.0
    if device is not None:
        static_w, dynamic_w = device.static_power_w, device.dynamic_power_w
        busy_s = device.lifetime_years * _SECONDS_PER_YEAR * price_profile.hardware_utilisation
        hardware_usd_per_s = device.price_usd / busy_s
    return TierRates(
        input_usd_per_token=prices.input_usd,
        cached_input_usd_per_token=prices.cached_input_usd,
        output_usd_per_token=prices.output_usd,
        static_power_w=static_w,
        dynamic_power_w=dynamic_w,
        hardware_usd_per_s=hardware_usd_per_s,
        energy_up_j_per_byte=sum(hop.energy_up_j_per_mbyte for hop in hops) / _BYTES_PER_MBYTE,
        energy_down_j_per_byte=sum(hop.energy_down_j_per_mbyte for hop in hops) / _BYTES_PER_MBYTE,
        transfer_usd_per_byte=sum(hop.transfer_usd_per_gbyte for hop in hops) / _BYTES_PER_GBYTE,
    )


class Charges(NamedTuple, Generic[Quantity]):
    """The bill of one attempt (floats) or of many (columns): money in $, then the energy and carbon behind it."""

    api_input_usd: Quantity
    api_cached_usd: Quantity
    api_output_usd: Quantity
    transfer_usd: Quantity
    energy_usd: Quantity
    hardware_usd: Quantity
    carbon_usd: Quantity
    energy_j: Quantity
    carbon_g: Quantity

    @property
    def total_usd(self) -> Quantity:
        """Sum of the money items."""
        api_usd = self.api_input_usd + self.api_cached_usd + self.api_output_usd
        return api_usd + self.transfer_usd + self.energy_usd + self.hardware_usd + self.carbon_usd


_charges: Callable[[tuple[Any, ...]], Charges[Any]] = fast_constructor(Charges)


def charge(
    rates: TierRates[Quantity],
    prices: PriceProfile,
    *,
    prompt_tokens: Quantity,
    cached_tokens: Quantity,
    completion_tokens: Quantity,
    upload_bytes: Quantity,
    download_bytes: Quantity,
    device_s: Quantity,
    served: Quantity,
) -> Charges[Quantity]:
    """What an attempt costs.

    `cached_tokens` are those of the `prompt_tokens` that were read from a cache. `served` is 1 where the service of the
    attempt began and 0 where it did not: an API bills tokens only for the former, while a call turned away with a 429 has
    still been sent, so its bytes and their radio energy are charged. `device_s` is the attempt's share of busy device time.
    """
    energy_j = device_energy_j(rates.static_power_w, rates.dynamic_power_w, device_s) + radio_energy_j(
        rates.energy_up_j_per_byte, rates.energy_down_j_per_byte, upload_bytes, download_bytes
    )
    emitted_g = carbon_g(energy_j, prices.carbon_g_per_kwh)
    api_input_usd = rates.input_usd_per_token * (prompt_tokens - cached_tokens) * served
    api_cached_usd = rates.cached_input_usd_per_token * cached_tokens * served
    api_output_usd = rates.output_usd_per_token * completion_tokens * served
    transfer_usd = rates.transfer_usd_per_byte * (upload_bytes + download_bytes)
    energy_usd = electricity_usd(energy_j, prices.electricity_usd_per_kwh)
    hardware_usd = rates.hardware_usd_per_s * device_s
    carbon_usd = emitted_g * (prices.carbon_usd_per_tonne / G_PER_TONNE)
    return _charges((
        api_input_usd, api_cached_usd, api_output_usd, transfer_usd, energy_usd, hardware_usd, carbon_usd, energy_j, emitted_g,
    ))  # fmt: skip


def decision_charge(decision_s: Quantity, power_w: float, prices: PriceProfile) -> Charges[Quantity]:
    """What the user's own device costs while it decides: energy, its price and its carbon."""
    energy_j, nothing = decision_s * power_w, decision_s * 0.0
    emitted_g = carbon_g(energy_j, prices.carbon_g_per_kwh)
    return Charges(
        api_input_usd=nothing, api_cached_usd=nothing, api_output_usd=nothing, transfer_usd=nothing,
        energy_usd=electricity_usd(energy_j, prices.electricity_usd_per_kwh), hardware_usd=nothing,
        carbon_usd=emitted_g * (prices.carbon_usd_per_tonne / G_PER_TONNE), energy_j=energy_j, carbon_g=emitted_g,
    )  # fmt: skip


def ledger(
    subtasks: Columns, rates: Sequence[TierRates[float]], prices: PriceProfile
) -> dict[str, npt.NDArray[np.float64]]:
    """The bill of every row of the subtask table: LEDGER_ITEMS, then energy_j, carbon_g and total_usd.

    `rates` are indexed by the `tier` column; tier -1 (never placed) costs nothing. Service began where the prefill took
    time or the attempt succeeded.
    """
    tier = np.asarray(subtasks["tier"], dtype=np.intp)

    def per_row(name: str) -> npt.NDArray[np.float64]:
        return np.array([*(getattr(r, name) for r in rates), 0.0])[tier]  # the appended zero is what -1 picks

    served = (subtasks["prefill_s"] > 0.0) | np.isin(subtasks["status"], ("ok", "escalated"))
    bill = charge(
        TierRates(**{item.name: per_row(item.name) for item in fields(TierRates)}),
        prices,
        prompt_tokens=subtasks["prompt_tokens"],
        cached_tokens=subtasks["cached_tokens"],
        completion_tokens=subtasks["completion_tokens"],
        upload_bytes=subtasks["upload_bytes"],
        download_bytes=subtasks["download_bytes"],
        device_s=subtasks["device_s"],
        served=np.asarray(served, dtype=np.float64),
    )
    return {**bill._asdict(), "total_usd": bill.total_usd}


def sla_penalties(
    latency_s: npt.NDArray[np.float64], completed: npt.NDArray[np.bool_], deadline_s: float | None, penalty_usd: float
) -> npt.NDArray[np.float64]:
    """Penalty per request, $: for every one that was late or did not complete. Without a deadline nothing is late."""
    late = np.zeros(len(latency_s), dtype=np.bool_) if deadline_s is None else latency_s > deadline_s
    return np.where(late | ~completed, penalty_usd, 0.0)
