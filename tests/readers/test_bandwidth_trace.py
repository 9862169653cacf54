"""Tests of the trace value (workloads/bandwidth.py) that all bandwidth readers give."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from workloads.bandwidth import BandwidthTrace
from workloads.errors import InputError


def trace(durations_s, mbps):
    """A trace made of two lists."""
    return BandwidthTrace(np.array(durations_s, dtype=float), np.array(mbps, dtype=float), source="made")


def test_mean_is_weighted_by_time():
    """Three seconds at 2 Mbit/s and one at 10 are 16 Mbit in 4 s: 4 Mbit/s, not the mean of the values."""
    made = trace([3, 1], [2, 10])
    assert made.period_s == 4
    assert made.mean_mbps == pytest.approx(4)


def test_scaled_scales_bandwidth_and_keeps_time():
    """A factor changes the bandwidth only, and the scaled trace still says where it came from."""
    made = trace([3, 1], [2, 10])
    scaled = made.scaled(0.5)
    assert scaled.mbps.tolist() == [1, 5]
    assert scaled.durations_s.tolist() == [3, 1]
    assert scaled.source == "made"
    assert made.mbps.tolist() == [2, 10]


def test_values_cannot_be_changed():
    """Neither the fields, nor their elements, nor the array a trace was made from can change it."""
    given = np.array([2.0, 10.0])
    made = BandwidthTrace(np.array([3.0, 1.0]), given, "made")
    given[0] = 99
    assert made.mbps[0] == 2
    with pytest.raises(ValueError, match="read-only"):
        made.mbps[0] = 5
    with pytest.raises(FrozenInstanceError):
        made.source = "other"  # type: ignore[misc]


def test_survives_the_way_to_a_worker_process():
    """A pickled trace, as sent to a worker process, arrives with the same values."""
    made = trace([3, 1], [2, 10])
    arrived = pickle.loads(pickle.dumps(made))  # noqa: S301 - this project's own value, made in this test
    assert arrived.durations_s.tolist() == [3, 1]
    assert arrived.mbps.tolist() == [2, 10]


@pytest.mark.parametrize(
    ("durations_s", "mbps", "words"),
    [
        ([1, 0], [1, 1], ["element 2", "durations_s", "found 0"]),
        ([1, -2], [1, 1], ["element 2", "durations_s", "found -2"]),
        ([1, np.nan], [1, 1], ["element 2", "durations_s", "nan"]),
        ([1, 1], [1, -3], ["element 2", "mbps", "found -3"]),
        ([1, 1], [np.inf, 1], ["element 1", "mbps", "inf"]),
        ([1, 1], [0, 0], ["mbps", "no bandwidth is above 0"]),
        ([1, 1, 1], [1, 1], ["3 durations", "2 bandwidths"]),
        ([], [], ["durations_s", "shape (0,)"]),
        ([[1], [1]], [[1], [1]], ["durations_s", "shape (2, 1)"]),
        ([1e308, 1e308], [1, 1], ["overflow"]),
    ],
)
def test_refuses_what_no_link_can_be(durations_s, mbps, words):
    """A trace that could never carry anything, or has no defined bandwidth, is refused with the value that is wrong."""
    with pytest.raises(InputError) as caught:
        trace(durations_s, mbps)
    assert all(word in str(caught.value) for word in ["made", *words])


@pytest.mark.parametrize("factor", [0, -1, np.nan, np.inf])
def test_refuses_a_factor_that_stops_the_link(factor):
    """A factor that is not a positive number is refused."""
    with pytest.raises(InputError, match="factor above 0"):
        trace([1], [1]).scaled(factor)
