"""Energy arithmetic against hand calculations and conservation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.energy import carbon_g, device_energy_j, electricity_usd, idle_energy_j, radio_energy_j

amounts = st.floats(min_value=0.0, max_value=1e6)


def test_a_kilowatt_for_an_hour_is_a_kilowatt_hour():
    """1000 W for 3600 s costs the price and emits the intensity of exactly one kWh."""
    energy_j = device_energy_j(200.0, 800.0, 3600.0)
    assert energy_j == 3.6e6
    assert electricity_usd(energy_j, 0.1668) == pytest.approx(0.1668, rel=1e-12)
    assert carbon_g(energy_j, 390.0) == pytest.approx(390.0, rel=1e-12)


def test_radio_energy_counts_each_direction_at_its_own_rate():
    """2 MB up at 4 J/MB and 10 MB down at 1 J/MB are 18 J, and swapping the directions is not the same."""
    assert radio_energy_j(4e-6, 1e-6, 2e6, 10e6) == pytest.approx(18.0, rel=1e-12)
    assert radio_energy_j(4e-6, 1e-6, 10e6, 2e6) == pytest.approx(42.0, rel=1e-12)


def test_a_switched_on_fleet_uses_its_static_power_throughout():
    """Busy plus idle energy of three replicas is static power over the makespan plus dynamic power over the busy time."""
    static_w, dynamic_w, replicas, makespan_s = 5.0, 20.0, 3.0, 100.0
    busy_s = np.array([30.0, 12.5, 0.0, 41.5])
    of_subtasks = device_energy_j(np.full(4, static_w), np.full(4, dynamic_w), busy_s).sum()
    idle = idle_energy_j(static_w, replicas, makespan_s, float(busy_s.sum()))
    assert idle == pytest.approx(5.0 * (300.0 - 84.0))
    assert of_subtasks + idle == pytest.approx(static_w * replicas * makespan_s + dynamic_w * busy_s.sum(), rel=1e-12)


@given(st.lists(st.tuples(amounts, amounts, amounts), min_size=1, max_size=20))
def test_columns_give_what_the_numbers_in_them_give(rows):
    """Arrays and floats go through the same arithmetic: equal to the last bit."""
    static_w, dynamic_w, seconds = np.array(rows).T
    for column, row in zip(device_energy_j(static_w, dynamic_w, seconds), rows, strict=True):
        assert column == device_energy_j(*row)
    for column, (power_w, replicas, time_s) in zip(
        idle_energy_j(static_w, dynamic_w, seconds, seconds), rows, strict=True
    ):
        assert column == idle_energy_j(power_w, replicas, time_s, time_s)
    for column, row in zip(carbon_g(seconds, 390.0), rows, strict=True):
        assert column == carbon_g(row[2], 390.0)


@given(amounts, amounts, amounts, amounts)
def test_energy_grows_with_time_and_power(static_w, dynamic_w, seconds, more):
    """More time or more power never uses less energy."""
    energy_j = device_energy_j(static_w, dynamic_w, seconds)
    assert device_energy_j(static_w, dynamic_w, seconds + more) >= energy_j
    assert device_energy_j(static_w + more, dynamic_w, seconds) >= energy_j
    assert device_energy_j(static_w, dynamic_w + more, seconds) >= energy_j
