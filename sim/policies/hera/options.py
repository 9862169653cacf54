"""What can be told `hera`: who predicts, which parts of Algorithm 1 take part, thresholds, budgets and times."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim.policies.base import PolicyOptions
from sim.policies.features import PACKAGED_ENCODER
from sim.profiles import NonNegative, Positive

COMPONENTS = ("urc", "sse", "sle", "cd", "sd")
_ONE = f"({'|'.join(COMPONENTS)})"
Cosine = Annotated[float, Field(ge=-1.0, le=1.0)]


class HeraOptions(PolicyOptions):
    """Options of `hera`."""

    estimators: str = "retrieval"
    """Who predicts: `retrieval` takes the nearest profiled subtask, `perfect` looks into the recording (a bound, not a router), else a
    folder of trained estimators (`run_sim.py estimators`)."""
    any_family: bool = False
    """Use trained estimators also on families of tasks that they do not know."""
    components: Annotated[str, Field(pattern=rf"^{_ONE}(\+{_ONE})*$")] = "+".join(COMPONENTS)
    """Parts of Algorithm 1 that take part, joined by +."""
    tau_request: Annotated[float, Field(ge=0.0, le=1.01)] = 0.7
    """The whole request runs small where the final outputs are predicted to be more alike than this."""
    kappa: Cosine = 0.6
    """Subtasks count as similar above this cosine, at position 0."""
    kappa_step: NonNegative = 0.02
    """What each later position adds to kappa."""
    kappa_positions: Annotated[int, Field(ge=0)] = 5
    """Positions after which kappa rises no more."""
    sle_index: Literal["d+1", "d"] = "d+1"
    """Which predicted small subtask is compared at S-L distance d: the (d+1)-th (2025) or the d-th (2026)."""
    horizon: Annotated[int, Field(ge=1)] = 5
    """Steps that convergence detection looks ahead."""
    tiers: Literal["two", "all"] = "two"
    """two: the first small and the first large tier, as in the papers. all: the model of every tier is compared with the best one, the
    cheapest first, and of tiers with the same model the cheaper one now is taken (perfect and retrieval estimators)."""
    decomposition: Literal["all", "prefix"] = "all"
    """SD runs a subtask's simpler parts small if `all` of them pass, or the leading ones that pass (`prefix`); the large model takes over there."""
    encoder: str = PACKAGED_ENCODER
    """Sentence encoder: `all-MiniLM-L6-v2` is installed; else a model's folder or its name on the Hugging Face hub."""
    neighbours: Annotated[int, Field(ge=1)] = 10
    """Profiled requests that have a say in a request's similarity (retrieval)."""
    profiled_requests: Annotated[int, Field(ge=2)] = 300
    """Training requests that are profiled (retrieval): about a dozen subtasks each."""
    profile_threshold: Cosine = 0.7
    """From which cosine on two outputs are similar in the profile."""
    usd_budget: Positive | None = None
    """What a request may cost, $; the large model only runs where the rest still fits."""
    latency_budget_s: Positive | None = None
    """How long a request may take, s; each subtask goes where the rest fits best."""
    dear_weight: NonNegative = 0.0
    """How far kappa falls while the large tier is dearer than usual: by this much at twice the usual difference in cost."""
    time_usd_per_s: NonNegative = 0.0
    """What a second of waiting counts for in that difference, $."""
    late_usd: NonNegative = 0.0
    """What missing the request's deadline counts for in that difference, $: the risk of it is estimated for either tier."""
    embedding_s: NonNegative = 0.012
    """Time to embed one text, s (about 82 texts/s on one CPU thread, measured)."""
    beside_s: NonNegative | None = None
    """Time to embed the second of two texts that are compared beside the first, s: .003 in one pass of the encoder, as measured; one after
    the other unless told."""
    prediction_s: NonNegative | None = None
    """Time in which both predictors, side by side, write one subtask, s; as measured for trained estimators, else none, unless told."""
