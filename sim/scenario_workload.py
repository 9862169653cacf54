"""The scenario's workload section: what is asked, how often, by whom."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.profiles import Count, NonNegative, Positive, Share, Strict

Tokens = Annotated[float, Field(gt=0, le=1e6)]


class Arrivals(Strict):
    """When requests arrive."""

    kind: Literal["poisson", "gamma", "mmpp", "diurnal", "closed", "trace", "constant"] = "poisson"
    """poisson; gamma (renewal with a chosen burstiness); mmpp (two-state bursts); diurnal (sinusoidal Poisson); closed (users who
    wait for their answer); trace (recorded times); constant (evenly spaced)."""
    rate_per_s: Positive = 1.0
    """Mean arrival rate, requests/s (not for closed and trace)."""
    cv: Annotated[float, Field(gt=0, le=100)] = 1.0
    """gamma: coefficient of variation of the gaps; 1 = Poisson, above 1 = bursty."""
    burst_factor: Annotated[float, Field(ge=1)] = 4.0
    """mmpp: rate in the busy state over rate in the quiet state."""
    burst_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """mmpp: share of time in the busy state."""
    burst_s: Positive = 30.0
    """mmpp: mean length of a busy spell, s."""
    period_s: Positive = 86_400.0
    """diurnal: length of a day, s."""
    amplitude: Share = 0.5
    """diurnal: relative swing of the rate around its mean."""
    users: Count = 10
    """closed: number of users."""
    think_s: NonNegative = 10.0
    """closed: mean pause between an answer and the next request (exponential), s."""
    path: str | None = None
    """trace: the recorded file."""
    format: Literal["azure_llm", "burstgpt", "mooncake"] | None = None
    """trace: the file's format."""
    time_scale: Positive = 1.0
    """trace: factor on all times; 2 = half the load."""

    @model_validator(mode="after")
    def _trace_is_named(self) -> Arrivals:
        if self.kind == "trace" and (self.path is None or self.format is None):
            raise ValueError("arrivals of kind 'trace' need a path and a format")
        return self


class Modelled(Strict):
    """Statistical agent tasks, calibrated to the published averages of HERA/AIMS."""

    kind: Literal["modelled"]
    mean_subtasks: Annotated[float, Field(ge=3, le=12)] = 5.9
    """Mean steps of a request run by the large model."""
    max_subtasks: Annotated[int, Field(ge=3, le=15)] = 12
    """Most steps of a request."""
    prompt_tokens: Tokens = 300.0
    """Mean length of the user's prompt, tokens."""
    slm_output_tokens: Tokens = 70.0
    """Mean answer of the small model per step, tokens."""
    llm_output_tokens: Tokens = 90.0
    """Mean answer of the large model per step, tokens."""
    tool_tokens: Annotated[float, Field(ge=0, le=1e6)] = 60.0
    """Mean tool answer appended to the conversation per step, tokens."""
    tokens_cv: Annotated[float, Field(ge=0, le=10)] = 0.6
    """Coefficient of variation of all token counts."""
    tool_s: NonNegative = 0.0
    """Time of a tool call between steps, s."""
    distinct_tasks: Count = 10_000
    """Most different tasks drawn; more requests repeat them in a new random order."""


class RouteLLM(Strict):
    """Single-question tasks with both models' recorded answers: a RouteLLM correctness CSV."""

    kind: Literal["routellm"]
    path: str
    """The CSV file."""
    slm: str
    """Column of the small model."""
    llm: str
    """Column of the large model."""


class InterCode(Strict):
    """Recorded multi-step agent episodes, one file per model, on the same tasks."""

    kind: Literal["intercode"]
    slm_path: str
    """Episodes of the small model."""
    llm_path: str
    """Episodes of the large model."""
    observation_tool_s: NonNegative = 0.2
    """Time the environment takes to answer an action, s (the recordings hold no times)."""


class TokenTrace(Strict):
    """Single-call tasks whose token counts come from the arrival trace; answers are not graded by text but modelled."""

    kind: Literal["trace"]


class RecordedTasks(Strict):
    """Tasks and answers from an Isthmus recording."""

    kind: Literal["recording"]
    path: str
    """The recording (JSON lines, .gz or plain)."""


class PairTasks(Strict):
    """Tasks made for the shipped pair of small models: knowledge-base hops and word problems, with tools."""

    kind: Literal["pair"]
    split: Literal["train", "validation", "test"] = "test"
    """No question is in two splits; the models were trained on the first."""
    families: Annotated[tuple[Literal["hops", "sums"], ...], Field(min_length=1)] = ("hops", "sums")
    """hops: questions over an invented knowledge base; sums: word problems."""
    lengths: Annotated[tuple[Annotated[int, Field(ge=1, le=6)], ...], Field(min_length=1)] = (1, 2, 3, 4)
    """How many operations hang on each other in a task, drawn evenly from these."""
    distractors: Annotated[tuple[Annotated[int, Field(ge=0, le=2)], ...], Field(min_length=1)] = (0, 1, 2)
    """How many sentences a task does not need, drawn evenly from these."""
    distinct_tasks: Count = 1000
    """Number of different tasks."""
    draw: Annotated[int, Field(ge=0)] = 1
    """Which draw of tasks; the same number gives the same tasks under every scenario seed, as a recording needs."""


class BranchingTasks(Strict):
    """Independent word problems of the shipped pair, asked side by side and joined by a last one."""

    kind: Literal["branching"]
    split: Literal["train", "validation", "test"] = "test"
    """No question is in two splits; the models were trained on the first."""
    branches: Annotated[tuple[Annotated[int, Field(ge=2, le=4)], ...], Field(min_length=1)] = (2, 3)
    """How many questions a task falls into, drawn evenly from these."""
    lengths: Annotated[tuple[Annotated[int, Field(ge=1, le=6)], ...], Field(min_length=1)] = (1, 2)
    """How many operations hang on each other in a question, drawn evenly from these."""
    distractors: Annotated[tuple[Annotated[int, Field(ge=0, le=2)], ...], Field(min_length=1)] = (0, 1, 2)
    """How many sentences a question does not need, drawn evenly from these."""
    distinct_tasks: Count = 1000
    """Number of different tasks."""
    draw: Annotated[int, Field(ge=0)] = 1
    """Which draw of tasks; the same number gives the same tasks under every scenario seed, as a recording needs."""


class Gsm8kTasks(Strict):
    """Word problems from a GSM8K-style file; the agent has a calculator, the last number counts."""

    kind: Literal["gsm8k"]
    path: str
    """JSON lines with `question` and `answer`, the number after ####."""
    limit: Count | None = None
    """Only the first so many."""


class HotpotQaTasks(Strict):
    """Multi-hop questions from a HotpotQA-style file; the agent searches the question's own paragraphs."""

    kind: Literal["hotpotqa"]
    path: str
    """A JSON list of questions with context paragraphs."""
    limit: Count | None = None
    """Only the first so many."""
    metric: Literal["exact_match", "f1"] = "exact_match"
    """How an answer is graded, after SQuAD's normalisation."""


class Dialogues(Strict):
    """Generated dialogues with modalities, whose answers have a known truth (workloads/tasks/dialogues.py)."""

    kind: Literal["dialogues"]
    split: Literal["train", "test"] = "test"
    """Dialogues of two splits are drawn apart: learn on the first, judge on the second. Every scenario seed draws new ones."""
    modalities: Annotated[int, Field(ge=0, le=16)] = 3
    """Modalities (images, clips, logs) that could go along with each turn."""
    kinds: Annotated[int, Field(ge=1, le=64)] = 4
    """Task categories; the first four are TMO's."""
    turns: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=1)] = (2, 3, 4, 5)
    """How many turns a dialogue has, drawn evenly from these."""
    domains: Annotated[tuple[Literal["kitchen", "workshop", "clinic", "farm", "warehouse", "classroom"], ...], Field(min_length=1)] = (
        "kitchen", "workshop", "clinic", "farm", "warehouse", "classroom",
    )  # fmt: skip
    """Places of work, drawn evenly from these."""
    size_scale: Positive = 1.0
    """Factor on the bytes of all attachments."""
    association_error: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Standard deviation of the association scores, which policies see, around the true needs, which they do not."""
    persistence: Share = 0.0
    """Chance that a turn refers to the same modalities as the turn before: what was seen once is needed again."""
    memory: Share = 0.5
    """What it is worth that a modality was seen earlier in the dialogue, as a share of seeing it now."""
    fade: Share = 0.03
    """What the weakest model loses per turn that came before."""
    distraction: Share = 0.1
    """What it costs to send everything along with a question that needs nothing."""
    switch: Share = 0.03
    """What it costs that another model answered the turn before."""
    noise: Share = 0.6
    """Largest deviation of a turn's score from its mean, as a share of the way to 0 or 1."""
    distinct_tasks: Count = 10_000
    """Most different dialogues drawn; more requests repeat them in a new random order."""
    training_dialogues: Annotated[int, Field(ge=0)] = 400
    """Dialogues of the other split that policies may learn from before the run."""


class M4a1(Strict):
    """M4A1 dialogues from a file, answered by a model of their recorded scores (sim/tmo/m4a1_backend.py); labelled `modelled`."""

    kind: Literal["m4a1"]
    path: str
    """The JSON file."""
    split: Literal["train", "test", "all"] = "test"
    """Dialogues to run, each graded by what the dialogues of its own split were worth; policies may learn from the other split."""
    folds: Annotated[int, Field(ge=2, le=1000)] = 5
    """test is one part of so many, train the rest."""
    responses: Literal["means", "neighbours", "ridge", "bayesian"] = "means"
    """What expects a response: shrunk means of task kind and action, the authors' nearest neighbours, or a regression."""
    score_scale: Positive = 2.0
    """Score that counts as 1; higher ones are cut off. M4A1's go to 9, and 93 % stay within 2."""
    sorry_is_zero: bool = True
    """As the authors do: an answer with "sorry", "I don't have" or "can't" scores 0."""
    image_bytes: Annotated[int, Field(ge=0, le=10**9)] = 368_000
    """Size of each image, which the file does not hold: a JPEG of 1024 x 1024 pixels at 0.35 bytes each."""
    image_tokens: Annotated[int, Field(ge=0, le=10**6)] = 765
    """Tokens of each image in a prompt: GPT-4o's count for 1024 x 1024 pixels."""
    noise: Share = 0.0
    """Largest deviation of a response from what the model expects, as a share of the way to 0 or 1."""


class Workload(Strict):
    """What is asked, how often, by whom."""

    tasks: Annotated[
        Modelled
        | RouteLLM
        | InterCode
        | TokenTrace
        | RecordedTasks
        | PairTasks
        | BranchingTasks
        | Gsm8kTasks
        | HotpotQaTasks
        | Dialogues
        | M4a1,
        Field(discriminator="kind"),
    ]
    """Where tasks and answers come from."""
    requests: Count = 400
    """Number of requests; tasks repeat in a new random order when there are fewer of them."""
    warmup_requests: Annotated[int, Field(ge=0)] = 0
    """Requests at the start that run but are left out of metrics."""
    arrivals: Arrivals = Arrivals()
    """When requests arrive."""
    homes: Count = 1
    """Number of user devices; requests come from them in turn."""
    shuffle: bool = True
    """Draw a new order of the tasks per seed."""
