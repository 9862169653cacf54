"""What can be known of a scenario without running it: rates, nominal service times, and what policies may study."""

from __future__ import annotations

from sim.cost import TierRates, TokenPrices, charge, tier_rates, token_prices
from sim.nominal import mean_latency_s, nominal_service_s
from sim.policies.base import Study, TierView
from sim.roofline import Roofline
from sim.scenario import Scenario, Tier
from sim.step_model import StepModel
from sim.step_times import StepTimes
from sim.workload import BuiltWorkload
from workloads.errors import InputError
from workloads.task import ModelCall, with_attachments


def rates_of(scenario: Scenario) -> dict[str, TierRates[float]]:
    """What each tier charges. Raises InputError for a model whose price nobody lists."""
    rates = {}
    for name, tier in scenario.tiers.items():
        hops = [link.link for link in scenario.route(name)]
        rates[name] = tier_rates(tier.device, price_of(scenario, name), hops, scenario.pricing.other)
    return rates


def price_of(scenario: Scenario, tier: str) -> TokenPrices:
    """What the model of a tier charges per token. Raises InputError for a model whose price nobody lists."""
    own = scenario.pricing.tokens.get(tier)
    if own is not None:
        cached = own.input_usd_per_mtok if own.cached_input_usd_per_mtok is None else own.cached_input_usd_per_mtok
        return TokenPrices(own.input_usd_per_mtok / 1e6, cached / 1e6, own.output_usd_per_mtok / 1e6)
    try:
        return token_prices(scenario.tiers[tier].model.price_name, scenario.pricing.date)
    except ValueError as error:
        remedy = f"Correct price_name, or give prices of your own under pricing.tokens.{tier}"
        raise InputError(f"field tiers.{tier}.model.price_name", str(error), remedy) from None


def tier_views(scenario: Scenario, rates: dict[str, TierRates[float]]) -> tuple[TierView, ...]:
    """What policies know of the tiers."""
    return tuple(
        TierView(
            name, tier.role, tier.model_name or name, tier.model.quality, rates[name].input_usd_per_token,
            rates[name].cached_input_usd_per_token, rates[name].output_usd_per_token, tier.sees_modalities,
        )
        for name, tier in scenario.tiers.items()
    )  # fmt: skip


def roofline_of(tier: Tier) -> StepModel | None:
    """How long iterations of a tier's model on its device take, measured or by the roofline; None where there is no device."""
    device, model = tier.device, tier.model
    if device is None:
        return None
    memory_bytes = device.memory_gbytes * 1e9
    weight_bytes = (model.weight_gbytes or 2 * model.parameters_b) * 1e9
    if device.step_times is not None:
        per_token = model.kv_bytes_per_token
        capacity = int((memory_bytes - weight_bytes) / per_token) if per_token else None
        return StepTimes(**device.step_times.model_dump(), kv_capacity_tokens=capacity)
    assert device.peak_tflops is not None
    assert device.memory_bandwidth_gbytes_s is not None
    return Roofline(
        peak_flops=device.peak_tflops * 1e12, flops_efficiency=device.flops_efficiency,
        memory_bandwidth_bytes_s=device.memory_bandwidth_gbytes_s * 1e9, bandwidth_efficiency=device.bandwidth_efficiency,
        memory_bytes=memory_bytes, parameters=model.parameters_b * 1e9, weight_bytes=weight_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token, step_overhead_s=device.step_overhead_s,
    )  # fmt: skip


def study_of(scenario: Scenario, workload: BuiltWorkload, seed: int) -> Study:
    """The workload as policies may study it beforehand."""
    rates = rates_of(scenario)
    rooflines = {name: roofline_of(tier) for name, tier in scenario.tiers.items()}

    def placed(call: ModelCall, tier: str) -> ModelCall:
        """A call that nobody placed goes with all that the tier's model takes."""
        if call.attachments is not None or not call.task.attachments:
            return call
        return with_attachments(call, call.task.attachments if scenario.tiers[tier].sees_modalities else ())

    def expected_cost_usd(call: ModelCall, tier: str, completion_tokens: int) -> float:
        call, spec, roofline = placed(call, tier), scenario.tiers[tier], rooflines[tier]
        # An endpoint's device is the provider's: its time costs nothing beyond the token prices.
        device_s = nominal_service_s(spec, roofline, call.prompt_tokens, completion_tokens) if roofline else 0.0
        charges = charge(
            rates[tier], scenario.pricing.other, prompt_tokens=call.prompt_tokens, cached_tokens=0,
            completion_tokens=completion_tokens, upload_bytes=call.sent_bytes,
            download_bytes=spec.model.bytes_per_token * completion_tokens, device_s=device_s, served=1.0,
        )  # fmt: skip
        return float(charges.total_usd)

    def expected_latency_s(call: ModelCall, tier: str, completion_tokens: int) -> float:
        return mean_latency_s(scenario, tier, rooflines[tier], placed(call, tier), completion_tokens)

    study = Study(
        workload.tasks, workload.agent, workload.backend, tier_views(scenario, rates), seed, expected_cost_usd,
        expected_latency_s=expected_latency_s, keeps_attachments=scenario.client.keep_attachments,
    )  # fmt: skip
    if workload.training is None:
        return study
    return study._replace(training=study._replace(tasks=workload.training.tasks, backend=workload.training.backend))
