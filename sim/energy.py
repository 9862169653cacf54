"""Energy and carbon as plain arithmetic, the same for one subtask (floats) and for whole columns (arrays).

A device draws its static power as long as it is switched on and its dynamic power on top while it serves. A subtask is
charged both for its share of the busy time; the static power of the rest of the time belongs to nobody's subtask and is
what `idle_energy_j` gives for a fleet. Radios are charged by the byte, on the user's side only.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Quantity = TypeVar("Quantity", float, npt.NDArray[np.float64])
"""Either a number or a column; all arguments of one call are of one kind."""

J_PER_KWH = 3.6e6
G_PER_TONNE = 1e6


def device_energy_j(static_power_w: Quantity, dynamic_power_w: Quantity, device_s: Quantity) -> Quantity:
    """Energy of serving for `device_s` seconds of a device's time: (static + dynamic) x time, J."""
    return (static_power_w + dynamic_power_w) * device_s


def radio_energy_j(
    energy_up_j_per_byte: Quantity, energy_down_j_per_byte: Quantity, upload_bytes: Quantity, download_bytes: Quantity
) -> Quantity:
    """Energy of the user's side for sending and receiving, J."""
    return energy_up_j_per_byte * upload_bytes + energy_down_j_per_byte * download_bytes


def idle_energy_j(static_power_w: Quantity, replicas: Quantity, makespan_s: Quantity, busy_s: Quantity) -> Quantity:
    """Energy of a fleet that is switched on but not serving, J.

    `busy_s` is the busy time summed over the replicas, at most `replicas * makespan_s`. Together with the device energy
    of all subtasks this is the fleet's whole consumption over the makespan.
    """
    return static_power_w * (replicas * makespan_s - busy_s)


def electricity_usd(energy_j: Quantity, electricity_usd_per_kwh: float) -> Quantity:
    """Price of an amount of energy, $."""
    return energy_j * (electricity_usd_per_kwh / J_PER_KWH)


def carbon_g(energy_j: Quantity, carbon_g_per_kwh: float) -> Quantity:
    """Emissions of an amount of grid electricity, g CO2-equivalent."""
    return energy_j * (carbon_g_per_kwh / J_PER_KWH)
