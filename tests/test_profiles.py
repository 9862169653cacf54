"""Every named profile is valid, names its source, and agrees with the measurements that the source names."""

import csv
import json
import re
from datetime import date

import numpy as np
import pytest

from sim.cost import token_prices
from sim.profiles import KINDS, DeviceProfile, LinkProfile, ModelProfile, named_profiles
from sim.roofline import Roofline

PROFILES = named_profiles()
EVERY = [(kind, name) for kind, profiles in PROFILES.items() for name in profiles]
PRICED = sorted({m["price_name"] for m in PROFILES["models"].values() if m.get("price_name")})
LAYERS = re.compile(r"\((\d+) layers x (\d+) KV heads x (\d+)")
MMLU = re.compile(r"MMLU (\d+\.\d)")
RADIO = re.compile(
    r"up ([\d.]+) mW/Mbps, down ([\d.]+) mW/Mbps, base up ([\d.]+) mW, base down ([\d.]+) mW", flags=re.DOTALL
)


def roofline(device_name, model_name):
    """A named model on a named device."""
    device = DeviceProfile(**PROFILES["devices"][device_name])
    model = ModelProfile(**PROFILES["models"][model_name])
    assert model.weight_gbytes is not None
    assert device.peak_tflops is not None
    assert device.memory_bandwidth_gbytes_s is not None
    return Roofline(
        peak_flops=device.peak_tflops * 1e12,
        memory_bandwidth_bytes_s=device.memory_bandwidth_gbytes_s * 1e9,
        memory_bytes=device.memory_gbytes * 1e9,
        parameters=model.parameters_b * 1e9,
        weight_bytes=model.weight_gbytes * 1e9,
        kv_bytes_per_token=model.kv_bytes_per_token,
        flops_efficiency=device.flops_efficiency,
        bandwidth_efficiency=device.bandwidth_efficiency,
        step_overhead_s=device.step_overhead_s,
    )


def tokens_per_s(device_name, model_name, context=256):
    """Decoding rate of a single stream."""
    return 1.0 / roofline(device_name, model_name).decode_step_s(1, context)


def test_the_file_has_exactly_the_kinds_the_scenario_knows():
    """Five kinds, none of them empty."""
    assert list(PROFILES) == list(KINDS)
    assert all(PROFILES.values())


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_profile_is_valid_and_names_its_source(kind, name):
    """The fields pass the strict model, and the source is a sentence and not a stub."""
    profile = KINDS[kind](**PROFILES[kind][name])
    assert len(profile.source) > 30  # type: ignore[attr-defined]


@pytest.mark.parametrize("price_name", PRICED)
@pytest.mark.parametrize("on", [date(2024, 6, 1), date(2026, 1, 1), date(2026, 10, 1)])
def test_every_price_name_has_a_price(price_name, on):
    """The price library knows every name that a profile uses, and cached input is never dearer than fresh."""
    prices = token_prices(price_name, on)
    assert 0.0 < prices.cached_input_usd <= prices.input_usd <= prices.output_usd < 1e-3


@pytest.mark.parametrize("name", [n for n, m in PROFILES["models"].items() if "kv_bytes_per_token" in m])
def test_kv_cache_follows_from_the_model_config(name):
    """Keys and values of every layer, head and dimension at two bytes each."""
    model = PROFILES["models"][name]
    found = LAYERS.search(model["source"])
    assert found, "the source of a model with a KV cache names its layers, KV heads and head width"
    layers, heads, width = map(int, found.groups())
    assert model["kv_bytes_per_token"] == 2 * layers * heads * width * 2


@pytest.mark.parametrize("name", [n for n, m in PROFILES["models"].items() if MMLU.search(m["source"])])
def test_quality_is_interpolated_from_mmlu(name):
    """0 at Llama-3.2-3B's score, 1 at GPT-4's, clipped."""
    model = PROFILES["models"][name]
    score = float(MMLU.findall(model["source"])[0])
    assert model["quality"] == pytest.approx(min(max((score - 63.4) / (86.4 - 63.4), 0.0), 1.0), abs=5e-4)


@pytest.mark.parametrize("name", [n for n in PROFILES["models"] if n.endswith("-int4")])
def test_four_bits_change_only_the_weights(name):
    """A quantised variant is the same model in 26-40 % of the bytes (embeddings stay wider in small models)."""
    quantised, whole = PROFILES["models"][name], PROFILES["models"][name.removesuffix("-int4")]
    assert 0.26 < quantised["weight_gbytes"] / whole["weight_gbytes"] < 0.40
    for field in ("parameters_b", "kv_bytes_per_token", "quality"):
        assert quantised[field] == whole[field]


@pytest.mark.parametrize(
    "name", [n for n, m in PROFILES["models"].items() if "weight_gbytes" in m and "-int4" not in n]
)
def test_whole_weights_take_two_bytes_per_parameter(name):
    """Active parameters x 2 bytes, except for the mixture of experts, whose idle experts lie in memory too."""
    model = PROFILES["models"][name]
    parameters_b = 46.7 if name.startswith("mixtral") else model["parameters_b"]
    assert model["weight_gbytes"] == pytest.approx(2.0 * parameters_b, rel=0.01)


@pytest.mark.parametrize("name", [n for n, link in PROFILES["links"].items() if link.get("energy_up_j_per_mbyte")])
def test_radio_energy_follows_from_the_published_power_model(name):
    """J/MB = (slope + base / bandwidth) x 8 / 1000 at the profile's bandwidth."""
    link = LinkProfile(**PROFILES["links"][name])
    found = RADIO.search(link.source)
    assert found, "the source of a radio names its power model"
    slope_up, slope_down, base_up, base_down = map(float, found.groups())
    assert link.energy_up_j_per_mbyte == pytest.approx((slope_up + base_up / link.up_mbps) * 0.008, rel=0.005)
    assert link.energy_down_j_per_mbyte == pytest.approx((slope_down + base_down / link.down_mbps) * 0.008, rel=0.005)


@pytest.mark.parametrize(
    ("device", "model", "low", "high"),
    [
        ("raspberry-pi-5", "llama-3.2-3b-int4", 4.5, 5.6),  # github.com/geerlingguy/ai-benchmarks, issues 7 and 24
        ("raspberry-pi-5", "llama-3-8b-int4", 1.87, 2.2),  # the same, Llama-3.1-8B
        (
            "jetson-orin-nano",
            "llama-3.2-3b-int4",
            30.0,
            43.1,
        ),  # NVIDIA, JetPack 6.2: 43.07 with slightly smaller weights
        ("jetson-orin-nx", "llama-3.2-3b-int4", 10.0, 40.0),  # same memory as the Orin Nano
        ("iphone-15-pro", "llama-3.2-3b-int4", 10.0, 25.3),  # bounded by 51.2 GB/s / 2.02 GB
        ("rtx-4090", "llama-3-8b-int4", 100.0, 150.0),
        ("a100-80gb", "llama-3-8b", 60.0, 100.0),
    ],
)
def test_decoding_rates_are_those_measured(device, model, low, high):
    """Single-stream decoding by the roofline lies where published measurements do."""
    assert low <= tokens_per_s(device, model) <= high


def test_a_jetson_tx2_needs_seconds_for_a_long_prompt():
    """2,048 tokens of a 3.8-billion model take 11.7 s of its peak compute, and so 11.7 to 20 s in practice."""
    device, model = PROFILES["devices"]["jetson-tx2"], PROFILES["models"]["phi-3-mini-int4"]
    at_peak_s = 2 * model["parameters_b"] * 1e9 * 2048 / (device["peak_tflops"] * 1e12)
    assert at_peak_s == pytest.approx(11.7, rel=0.02)
    assert at_peak_s < roofline("jetson-tx2", "phi-3-mini-int4").prefill_s(2048) < 20.0


@pytest.mark.parametrize("hardware", ["a100-80gb", "h100-80gb"])
def test_pairs_of_cards_reproduce_measured_prefill_and_decode(hardware, shared_data):
    """Llama-2-70B on two cards, batch 1: within 15 % of the measured medians for prompts of 512 to 8,192 tokens."""
    measured: dict[int, list[tuple[float, float]]] = {}
    with shared_data("cloud/perf_model.csv").open(newline="") as lines:
        for r in csv.DictReader(lines):
            size = int(r["prompt_size"])
            key = (r["model"], r["hardware"], r["tensor_parallel"], r["batch_size"])
            if key == ("llama2-70b", hardware, "2", "1") and size >= 512:
                measured.setdefault(size, []).append((float(r["prompt_time"]) / 1e3, float(r["token_time"]) / 1e3))
    assert sorted(measured) == [512, 1024, 2048, 4096, 8192]
    ours = roofline(f"{hardware}-x2", "llama-2-70b")
    for size, times in measured.items():
        prefill_s, token_s = np.median(times, axis=0)
        assert ours.prefill_s(size) == pytest.approx(prefill_s, rel=0.15), size
        assert ours.decode_step_s(1, size) == pytest.approx(token_s, rel=0.15), size


@pytest.mark.parametrize("name", PROFILES["devices"])
def test_every_device_runs_a_small_model_faster_than_a_large_one(name):
    """The smaller of two models prefills and decodes faster on any device, and both fit."""
    small, large = roofline(name, "llama-3.2-1b-int4"), roofline(name, "llama-3.2-3b-int4")
    assert small.prefill_s(512) < large.prefill_s(512)
    assert small.decode_step_s(1, 512) < large.decode_step_s(1, 512)


@pytest.mark.parametrize(
    ("profile", "file"),
    [
        ("groq-llama-70b", "groq_70b"),
        ("together-llama-70b", "together_70b"),
        ("replicate-llama-70b", "replicate_70b"),
        ("bedrock-llama-13b", "bedrock_13b"),
    ],
)
def test_endpoints_are_fits_to_the_measured_calls(profile, file, shared_data):
    """Median and sigma of first token and rate are the log-normal maximum-likelihood fit to the error-free calls."""
    calls = [c for c in json.loads(shared_data(f"cloud/{file}.json").read_text()) if c["error_code"] is None]
    ttft_s = np.array([c["ttft_s"] for c in calls])
    decode_s = np.array([c["end_to_end_latency_s"] for c in calls]) - ttft_s
    rate = (np.array([c["number_output_tokens"] for c in calls]) - 1) / decode_s
    endpoint = PROFILES["endpoints"][profile]
    assert f"n = {len(calls)}" in endpoint["source"]
    for field, values in (("ttft", ttft_s), ("tokens_per_s", rate)):
        median = endpoint["ttft_median_s" if field == "ttft" else "tokens_per_s_median"]
        assert median == pytest.approx(np.exp(np.log(values).mean()), rel=0.005)
        assert endpoint[f"{field}_sigma"] == pytest.approx(np.log(values).std(), abs=0.001)


@pytest.mark.parametrize(
    ("link", "folder", "down"),
    [("3g", "norway_hsdpa", True), ("wifi", "campus_wifi", True), ("wired", "fcc_broadband", False)],
)
def test_bandwidths_vary_as_in_the_recorded_traces(link, folder, down, shared_data):
    """Mean bandwidth and mean within-trace coefficient of variation are those of the traces that the source names."""
    means, variations = [], []
    for path in sorted(shared_data(f"network/{folder}").iterdir()):
        time_s, mbps = np.loadtxt(path).T
        weight = np.diff(time_s, prepend=time_s[0] - 1.0)
        weight[weight <= 0.0] = 0.0  # a few times do not increase
        mean = np.average(mbps, weights=weight)
        means.append(mean)
        variations.append(np.sqrt(np.average((mbps - mean) ** 2, weights=weight)) / mean)
    profile = PROFILES["links"][link]
    assert profile["bandwidth_cv"] == pytest.approx(np.mean(variations), abs=0.005)
    if down:
        assert profile["down_mbps"] == pytest.approx(np.mean(means), rel=0.005)


@pytest.mark.parametrize(
    ("link", "end"),
    [
        ("wan-regional", "Central US"),
        ("wan-continental", "West US"),
        ("wan-transatlantic", "West Europe"),
        ("wan-transpacific", "Southeast Asia"),
    ],
)
def test_wide_area_hops_are_half_the_measured_round_trip(link, end, shared_data):
    """Propagation is half of the mean of both directions' round-trip times to East US."""
    with shared_data("cloud/latency.csv").open(newline="") as lines:
        rows = {r["Source"]: r for r in csv.DictReader(lines)}
    round_trip_ms = (float(rows[end]["East US"]) + float(rows["East US"][end])) / 2.0
    assert PROFILES["links"][link]["propagation_s"] == pytest.approx(round_trip_ms / 2e3, rel=0.01)
