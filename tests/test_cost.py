"""The ledger against independent decimal arithmetic, and the API prices against published price lists."""

from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cost import LEDGER_ITEMS, TierRates, TokenPrices, charge, ledger, sla_penalties, tier_rates, token_prices
from sim.profiles import DeviceProfile, LinkProfile, PriceProfile
from sim.records import SUBTASK_KINDS, RowTable, SubtaskRow

PRICES = PriceProfile(
    electricity_usd_per_kwh=0.1668, carbon_g_per_kwh=390.0, carbon_usd_per_tonne=70.0, hardware_utilisation=0.5
)
EDGE = DeviceProfile(
    peak_tflops=15.0,
    memory_bandwidth_gbytes_s=102.4,
    memory_gbytes=16.0,
    static_power_w=5.0,
    dynamic_power_w=20.0,
    price_usd=699.0,
    lifetime_years=3.0,
)
RADIO = LinkProfile(
    up_mbps=6.3,
    down_mbps=21.3,
    propagation_s=0.027,
    energy_up_j_per_mbyte=4.33,
    energy_down_j_per_mbyte=1.16,
    transfer_usd_per_gbyte=6.0,
)
WAN = LinkProfile(up_mbps=1e4, down_mbps=1e4, propagation_s=0.04, transfer_usd_per_gbyte=0.09)
GPT_4 = token_prices("openai/gpt-4", date(2024, 6, 1))

tokens = st.integers(min_value=0, max_value=200_000)
sizes = st.floats(min_value=0.0, max_value=1e9)
usages = st.fixed_dictionaries(
    {
        "prompt_tokens": tokens.map(float),
        "cached_tokens": tokens.map(float),
        "completion_tokens": tokens.map(float),
        "upload_bytes": sizes,
        "download_bytes": sizes,
        "device_s": st.floats(min_value=0.0, max_value=1e5),
        "served": st.sampled_from([0.0, 1.0]),
    }
).map(lambda u: {**u, "prompt_tokens": u["prompt_tokens"] + u["cached_tokens"]})


def row(**changes):
    """A subtask row of a served attempt on tier 0; only what the ledger reads matters."""
    plain: dict[str, Any] = dict.fromkeys(SubtaskRow._fields, 0)
    plain |= {"status": "ok", "provenance": "exact", "reason": "", "prefill_s": 0.1}
    return SubtaskRow(**(plain | changes))


def table(*rows):
    """Rows as the columns that a simulation leaves behind."""
    collected = RowTable(SUBTASK_KINDS)
    for one in rows:
        collected.append(one)
    return collected.columns()


def test_gpt_4_in_2024_by_hand():
    """1,000 prompt and 500 completion tokens at $30 and $60 per million are 3 cents each."""
    bill = charge(
        tier_rates(None, GPT_4, [], PRICES),
        PRICES,
        prompt_tokens=1000.0,
        cached_tokens=0.0,
        completion_tokens=500.0,
        upload_bytes=4000.0,
        download_bytes=2000.0,
        device_s=0.0,
        served=1.0,
    )
    assert bill.api_input_usd == pytest.approx(0.03, rel=1e-12)
    assert bill.api_output_usd == pytest.approx(0.03, rel=1e-12)
    assert bill.total_usd == pytest.approx(0.06, rel=1e-12)


def test_every_item_by_decimal_arithmetic():
    """A tier that has everything (hardware, token prices, two hops) agrees with an independent decimal calculation."""
    rates = tier_rates(EDGE, TokenPrices(2.5e-6, 1.25e-6, 1e-5), [RADIO, WAN], PRICES)
    bill = charge(
        rates,
        PRICES,
        prompt_tokens=3000.0,
        cached_tokens=2048.0,
        completion_tokens=150.0,
        upload_bytes=250_000.0,
        download_bytes=27_000.0,
        device_s=7.25,
        served=1.0,
    )
    d = Decimal
    energy_j = d("25") * d("7.25") + (d("4.33") * 250_000 + d("1.16") * 27_000) / d(10**6)
    busy_s = d(3) * d("365.25") * 86_400 / 2
    carbon_g = energy_j / d(3_600_000) * 390
    expected = {
        "api_input_usd": d("2.5") * 952 / d(10**6),
        "api_cached_usd": d("1.25") * 2048 / d(10**6),
        "api_output_usd": d(10) * 150 / d(10**6),
        "transfer_usd": d("6.09") * 277_000 / d(10**9),
        "energy_usd": energy_j / d(3_600_000) * d("0.1668"),
        "hardware_usd": d(699) / busy_s * d("7.25"),
        "carbon_usd": carbon_g / d(10**6) * 70,
    }
    assert tuple(expected) == LEDGER_ITEMS
    for item, value in expected.items():
        assert getattr(bill, item) == pytest.approx(float(value), rel=1e-12), item
    assert bill.energy_j == pytest.approx(float(energy_j), rel=1e-12)
    assert bill.carbon_g == pytest.approx(float(carbon_g), rel=1e-12)
    assert bill.total_usd == pytest.approx(float(sum(expected.values())), rel=1e-12)


@given(usages)
def test_items_add_up_and_none_is_negative(usage):
    """The total is the sum of the ledger's items, each of them at least zero."""
    bill = charge(tier_rates(EDGE, GPT_4, [RADIO], PRICES), PRICES, **usage)
    items = [getattr(bill, item) for item in LEDGER_ITEMS]
    assert min(items) >= 0.0
    assert bill.total_usd == pytest.approx(sum(items), rel=1e-12, abs=1e-300)


@given(st.lists(usages, min_size=1, max_size=20))
def test_columns_give_what_the_numbers_in_them_give(many):
    """A policy's floats and the report's columns go through one arithmetic: equal to the last bit."""
    rates = tier_rates(EDGE, GPT_4, [RADIO, WAN], PRICES)
    columns = {name: np.array([usage[name] for usage in many]) for name in many[0]}
    spread = TierRates(**{name: np.full(len(many), value) for name, value in vars(rates).items()})
    of_columns = charge(spread, PRICES, **columns)
    for i, usage in enumerate(many):
        alone = charge(rates, PRICES, **usage)
        assert [column[i] for column in of_columns] == list(alone)
        assert of_columns.total_usd[i] == alone.total_usd


@given(usages, st.sampled_from(["prompt_tokens", "completion_tokens", "upload_bytes", "download_bytes", "device_s"]))
def test_more_of_anything_never_costs_less(usage, grown):
    """The bill is monotone in tokens, bytes and seconds."""
    rates = tier_rates(EDGE, GPT_4, [RADIO], PRICES)
    more = {**usage, grown: usage[grown] * 2.0 + 1.0}
    assert charge(rates, PRICES, **more).total_usd >= charge(rates, PRICES, **usage).total_usd


def test_cached_tokens_are_cheaper_where_the_provider_says_so():
    """GPT-4o reads a cached prompt at half price; GPT-4 has no such discount and charges the full price."""
    gpt_4o = token_prices("openai/gpt-4o", date(2025, 6, 1))
    assert gpt_4o == pytest.approx((2.5e-6, 1.25e-6, 1e-5), rel=1e-12)
    assert GPT_4.cached_input_usd == GPT_4.input_usd

    def total(prices, cached):
        usage = {"completion_tokens": 0.0, "upload_bytes": 0.0, "download_bytes": 0.0, "device_s": 0.0, "served": 1.0}
        rates = tier_rates(None, prices, [], PRICES)
        return charge(rates, PRICES, prompt_tokens=4096.0, cached_tokens=cached, **usage).total_usd

    assert total(gpt_4o, 4096.0) == pytest.approx(total(gpt_4o, 0.0) / 2.0, rel=1e-12)
    assert total(GPT_4, 4096.0) == total(GPT_4, 0.0)


def test_the_price_of_the_day_counts():
    """OpenAI cut o3 from $10/$40 to $2/$8 per million tokens on 10 June 2025."""
    before, after = (token_prices("openai/o3", date(2025, 6, day)) for day in (9, 10))
    assert (before.input_usd, before.output_usd) == pytest.approx((10e-6, 40e-6), rel=1e-12)
    assert (after.input_usd, after.output_usd) == pytest.approx((2e-6, 8e-6), rel=1e-12)
    assert token_prices("openai/o3", date(2020, 1, 1)) == before  # the oldest price has no beginning


def test_tiered_prices_count_at_their_base():
    """Claude Sonnet 4.5 has a dearer tier for very long prompts; the base tier is $3/$15 per million tokens."""
    assert token_prices("anthropic/claude-sonnet-4-5", date(2026, 1, 1)) == pytest.approx(
        (3e-6, 3e-7, 15e-6), rel=1e-12
    )


def test_own_hardware_has_no_token_price():
    """Without a price name every token is free."""
    assert token_prices(None, date(2025, 1, 1)) == TokenPrices(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        ("openai/gpt-4-turbos", ["openai/gpt-4-turbos", "gpt-4-turbo,"]),
        ("opneai/gpt-4", ["'opneai' is no provider", "Did you mean 'openai'"]),
        ("gpt-4", ["provider/model"]),
        ("openai/text-embedding-3-small", ["no price per input and output token"]),
    ],
)
def test_unknown_prices_name_what_exists(name, hints):
    """A name the library lacks is refused with the nearest names, not priced at zero."""
    with pytest.raises(ValueError, match="price") as caught:
        token_prices(name, date(2025, 1, 1))
    for hint in hints:
        assert hint in str(caught.value)


def test_the_table_is_billed_row_by_row():
    """Each row pays its own tier's rates: an endpoint's tokens, a device's seconds, nothing where no tier was found."""
    edge, cloud = tier_rates(EDGE, TokenPrices(), [], PRICES), tier_rates(None, GPT_4, [RADIO], PRICES)
    usage = {"prompt_tokens": 1000, "completion_tokens": 500, "upload_bytes": 1e6, "download_bytes": 1e5}
    bill = ledger(
        table(
            row(tier=0, device_s=3.0, **usage),
            row(tier=1, **usage),
            row(tier=-1, status="unavailable", prefill_s=0.0, device_s=3.0, **usage),
        ),
        [edge, cloud],
        PRICES,
    )
    assert tuple(bill) == (*LEDGER_ITEMS, "energy_j", "carbon_g", "total_usd")
    assert bill["api_output_usd"] == pytest.approx([0.0, 0.03, 0.0], rel=1e-12)
    assert bill["energy_j"] == pytest.approx([75.0, 4.33 + 0.116, 0.0], rel=1e-12)
    assert bill["hardware_usd"][0] > 0.0
    assert [name for name, column in bill.items() if column[2] != 0.0] == []
    scalar = charge(
        cloud, PRICES, cached_tokens=0.0, device_s=0.0, served=1.0, **{k: float(v) for k, v in usage.items()}
    )
    assert bill["total_usd"][1] == scalar.total_usd


@pytest.mark.parametrize(
    ("status", "prefill_s", "billed"),
    [
        ("ok", 0.2, True),
        ("ok", 0.0, True),  # all of the prompt was cached
        ("rejected", 0.0, False),
        ("unavailable", 0.0, False),
        ("attempt-timeout", 0.4, True),
        ("attempt-timeout", 0.0, False),
    ],
)
def test_tokens_are_billed_once_service_began(status, prefill_s, billed):
    """A 429 costs no tokens, but the bytes that were sent and their radio energy are paid for all the same."""
    sent = row(status=status, prefill_s=prefill_s, prompt_tokens=1000, completion_tokens=10, upload_bytes=2e6)
    bill = ledger(table(sent), [tier_rates(None, GPT_4, [RADIO], PRICES)], PRICES)
    assert bool(bill["api_input_usd"][0] > 0.0) is billed
    assert bool(bill["api_output_usd"][0] > 0.0) is billed
    assert bill["energy_j"][0] == pytest.approx(8.66, rel=1e-12)
    assert bill["transfer_usd"][0] == pytest.approx(0.012, rel=1e-12)


def test_an_empty_table_has_an_empty_bill():
    """A simulation in which nothing happened costs nothing."""
    bill = ledger(table(), [tier_rates(None, GPT_4, [], PRICES)], PRICES)
    assert {len(column) for column in bill.values()} == {0}


def test_hardware_costs_its_price_over_its_busy_life():
    """A device busy for the used share of its whole life has earned exactly its price, whatever that share is."""
    for utilisation in (0.1, 0.5, 1.0):
        prices = PriceProfile(hardware_utilisation=utilisation)
        rates = tier_rates(EDGE, TokenPrices(), [], prices)
        assert rates.hardware_usd_per_s * 3 * 365.25 * 86_400 * utilisation == pytest.approx(699.0, rel=1e-12)


def test_late_and_unfinished_requests_pay_the_penalty():
    """On time is free up to and including the deadline; an unfinished request pays even where no deadline is set."""
    latency_s, completed = np.array([1.0, 2.0, 2.1, 1.0, np.nan]), np.array([True, True, True, False, False])
    assert sla_penalties(latency_s, completed, 2.0, 0.5).tolist() == [0.0, 0.0, 0.5, 0.5, 0.5]
    assert sla_penalties(latency_s, completed, None, 0.5).tolist() == [0.0, 0.0, 0.0, 0.5, 0.5]
