"""A statistical agent whose accuracy depends on WHICH positions ran on the small model.

Each task has a tolerance T. A request whose position-weighted share of small-model steps is x ends right if and only if x <= T:
so the same placement always gives the same result, an oracle can enumerate placements, and policies compare on common ground.
The distribution of T is calibrated to the published averages of HERA/AIMS (EuroSys 2026, Fig. 2 and Fig. 4a): All-LLM 93.15 %,
All-SLM 42.95 %, random placement 47.65 %, and one early / middle / late small step among large ones costing 5.25 / 7.59 / 9.53
points. Not fitted, and therefore a check: the oracle's 72.25 % SLM usage at 84.05 %. Everything from here is labelled `modelled`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from workloads.agent import FRAMING_BYTES, AgentRun
from workloads.task import Completion, ModelCall, Outcome, Task, fast_constructor

_call = fast_constructor(ModelCall)
_completion = fast_constructor(Completion)
_MAX_TOKENS = ModelCall._field_defaults["max_tokens"]
_NOT_MEASURED = tuple((Completion._field_defaults | {"provenance": "modelled"}).values())
"""What a modelled answer says of its cached tokens, log-probability, times and so on."""


@dataclass(frozen=True, slots=True)
class AccuracyModel:
    """P(right | share x small) = all_llm - (all_llm - all_slm) * g(x), g(x) = (1 + c^h) x^h / (x^h + c^h), a Hill curve.

    Position i of K weighs `1 + slope * (i / (K - 1) - 1/2)`, normalised to sum 1: late steps matter more.
    """

    all_llm: float = 0.9315
    all_slm: float = 0.4295
    half_share: float = 0.248
    steepness: float = 15.0
    late_slope: float = 0.114

    def tolerance(self, quantile: float) -> float:
        """The task's tolerance at a uniform `quantile`: below 0 never solved, infinite solved by the SLM alone."""
        if quantile >= self.all_llm:
            return -1.0
        if quantile < self.all_slm:
            return math.inf
        lost = (self.all_llm - quantile) / (self.all_llm - self.all_slm)
        c_h = self.half_share**self.steepness
        return float((lost * c_h / (1 + c_h - lost)) ** (1 / self.steepness))

    def lost_share(self, share_small: float) -> float:
        """g(x): the share of the All-LLM to All-SLM gap that is lost when the weighted share `share_small` ran small."""
        c_h, x_h = self.half_share**self.steepness, share_small**self.steepness
        return float((1 + c_h) * x_h / (x_h + c_h))

    def weights(self, subtasks: int) -> tuple[float, ...]:
        """Position weights of a request of `subtasks` steps; they sum to 1."""
        if subtasks == 1:
            return (1.0,)
        raw = [1 + self.late_slope * (i / (subtasks - 1) - 0.5) for i in range(subtasks)]
        return tuple(w / sum(raw) for w in raw)


@dataclass(frozen=True, slots=True)
class TokenModel:
    """Sizes of the statistical agent's steps; log-normal with the given means, tokens."""

    prompt_tokens: float = 300.0
    slm_output_tokens: float = 70.0
    llm_output_tokens: float = 90.0
    tool_tokens: float = 60.0
    cv: float = 0.6
    mean_subtasks: float = 5.9
    max_subtasks: int = 12
    slm_extra_share: float = 0.08
    """Chance that a step run small yields one step more than the large model needs: 6.37 / 5.9 - 1."""
    bytes_per_token: float = 4.0
    tool_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Latent:
    """What a modelled task knows about itself and no policy sees. Token counts are per position, index 0 first."""

    tolerance: float
    weights: tuple[float, ...]
    slm_tokens: tuple[int, ...]
    llm_tokens: tuple[int, ...]
    tool_tokens: tuple[int, ...]
    extra: tuple[bool, ...]
    """Positions at which a small step needs one follow-up step."""
    prefix_blocks: tuple[int, ...] = ()
    """Content hashes of the prompt's leading blocks, where a trace carries them."""


def modelled_tasks(
    count: int, rng: np.random.Generator, accuracy: AccuracyModel | None = None, tokens: TokenModel | None = None,
    name: str = "modelled",
) -> Iterator[Task]:  # fmt: skip
    """Draw `count` tasks with ids `name`-0, `name`-1, ... A task's difficulty shows, noisily, in its prompt length, as it does in real data."""
    accuracy, sizes = accuracy or AccuracyModel(), tokens or TokenModel()
    for start in range(0, count, 4096):
        yield from _task_block(name, start, min(4096, count - start), rng, accuracy, sizes)


def _task_block(
    name: str, start: int, count: int, rng: np.random.Generator, accuracy: AccuracyModel, sizes: TokenModel
) -> Iterator[Task]:
    steps = np.clip(3 + rng.poisson(sizes.mean_subtasks - 3, count), 3, sizes.max_subtasks)
    quantiles = rng.random(count)
    shape = (count, sizes.max_subtasks)
    slm = _lognormal_tokens(rng, sizes.slm_output_tokens, sizes.cv, shape)
    llm = _lognormal_tokens(rng, sizes.llm_output_tokens, sizes.cv, shape)
    tool = _lognormal_tokens(rng, sizes.tool_tokens, sizes.cv, shape)
    extra = rng.random(shape) < sizes.slm_extra_share
    # Harder tasks (high quantile) have longer prompts: a Gaussian copula with correlation 0.4.
    noise = _lognormal_tokens(rng, sizes.prompt_tokens, sizes.cv, (count,)) * np.exp(0.5 * (quantiles - 0.5))
    for i in range(count):
        k = int(steps[i])
        latent = Latent(
            accuracy.tolerance(float(quantiles[i])), accuracy.weights(k), tuple(slm[i, :k].tolist()),
            tuple(llm[i, :k].tolist()), tuple(tool[i, :k].tolist()), tuple(extra[i, :k].tolist()),
        )  # fmt: skip
        yield Task(f"{name}-{start + i}", family=f"{k} steps", prompt_tokens=int(noise[i]), latent=latent)


def _lognormal_tokens(rng: np.random.Generator, mean: float, cv: float, shape: tuple[int, ...]) -> np.ndarray:
    sigma = math.sqrt(math.log1p(cv * cv))
    return np.maximum(1, np.rint(rng.lognormal(math.log(mean) - sigma * sigma / 2, sigma, shape))).astype(np.int64)


class ModelledWorkload:
    """The agent and the backend of modelled tasks; `quality` maps a model's name to how large-model-like it is (0..1)."""

    def __init__(self, quality: Mapping[str, float], tokens: TokenModel | None = None) -> None:
        self._quality = dict(quality)
        self._sizes = tokens or TokenModel()

    def agent(self, task: Task) -> AgentRun:
        """Run a task's steps; right if and only if the weighted share of small steps stays within its tolerance."""
        latent: Latent = task.latent
        quality, bytes_per_token = self._quality, self._sizes.bytes_per_token
        prompt_tokens, position, small_share, tool_s = task.prompt_tokens, 0, 0.0, 0.0
        for weight, tool_tokens, extra in zip(latent.weights, latent.tool_tokens, latent.extra, strict=True):
            upload = FRAMING_BYTES + int(prompt_tokens * bytes_per_token)
            done = yield _call(
                (task, position, (), prompt_tokens, upload, tool_s, _MAX_TOKENS, latent.prefix_blocks, None, 0)
            )
            tool_s = self._sizes.tool_s
            position += 1
            prompt_tokens += done.completion_tokens + tool_tokens
            smallness = 1.0 - quality[done.model]
            small_share += weight * smallness
            if extra and smallness > 0.5:
                upload = FRAMING_BYTES + int(prompt_tokens * bytes_per_token)
                done = yield _call((task, position, (), prompt_tokens, upload, tool_s, _MAX_TOKENS, (), None, 0))
                position += 1
                prompt_tokens += done.completion_tokens
        # A hair of slack: weights sum to 1 only up to rounding.
        return Outcome(1.0 if small_share <= latent.tolerance + 1e-12 else 0.0)

    def submit(self, call: ModelCall, model: str) -> Completion:
        """Answer with the token count drawn for this task, position and kind of model."""
        latent = call.task.latent
        tokens = latent.llm_tokens if self._quality[model] >= 0.5 else latent.slm_tokens
        count = tokens[call.position % len(tokens)]
        download = FRAMING_BYTES + int(count * self._sizes.bytes_per_token)
        return _completion((model, "", call.prompt_tokens, count, download, *_NOT_MEASURED))


def trace_task(
    number: int, prompt_tokens: int, output_tokens: int, prefix_blocks: tuple[int, ...], quantile: float,
    accuracy: AccuracyModel | None = None,
) -> Task:  # fmt: skip
    """One request of a token trace: its recorded sizes, one step, a modelled outcome."""
    tolerance = (accuracy or AccuracyModel()).tolerance(quantile)
    tokens = (max(1, output_tokens),)
    latent = Latent(tolerance, (1.0,), tokens, tokens, (0,), (False,), prefix_blocks)
    return Task(f"trace-{number}", family="trace", prompt_tokens=prompt_tokens, latent=latent)
