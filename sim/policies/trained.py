"""Routers trained on other requests beforehand: HybridLLM's classifier and RouteLLM's two light routers.

They learn from the recording under `inference.training`, never from the requests they are judged on, and decide by a threshold on
P(the small model is good enough), for a whole request or subtask by subtask.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import Field

from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study
from sim.policies.baselines import Placements
from sim.policies.features import PACKAGED_ENCODER, FloatArray, text_encoder
from sim.policies.threads import one_thread
from sim.policies.trees import Worth, both_answered, grow_trees, subtask_text, training_of, two_models, worth
from sim.profiles import NonNegative, Share
from sim.records import RequestRow

Row = TypeVar("Row")
_MOST_EXAMPLES = 4000
Predictor = Callable[[FloatArray], FloatArray]
"""Embeddings, shape (texts, width) -> P(the small model is good enough), shape (texts,)."""


class Example(NamedTuple):
    """A subtask to learn from: its text, what either model's answer is worth if the large one goes on, and if a coin decides."""

    text: str
    large_follows: Worth
    coin_follows: Worth


class TrainedOptions(PolicyOptions):
    """Options of the routers trained on other requests."""

    threshold: Share = 0.5
    """The small model runs where it is predicted to be good enough with at least this probability."""
    per: Literal["request", "subtask"] = "request"
    """Whether the first subtask decides for the whole request, or each subtask is judged by itself."""
    decision_s: NonNegative = 0.012
    """Time one decision takes, s; the default is one short text on one CPU thread (about 82 texts/s, measured)."""
    encoder: str = PACKAGED_ENCODER
    """Sentence encoder: `all-MiniLM-L6-v2` is installed; else a model's folder or its name on the Hugging Face hub."""


class TrainedRouter(RoutingPolicy):
    """Base: what differs is how examples become a predictor."""

    Options: ClassVar[type[PolicyOptions]] = TrainedOptions
    knob: ClassVar[str | None] = "threshold"
    name: ClassVar[str]

    def __init__(self, options: TrainedOptions) -> None:
        super().__init__(options)
        self._predict: Predictor = lambda asked: np.zeros(len(asked))
        self._decided: dict[int, bool] = {}
        self._placements, self._repeated = Placements(self.name), Placements(self.name, decided=False)

    def fit(self, embeddings: FloatArray, examples: Sequence[Example]) -> Predictor:
        """Learn from examples whose texts have these embeddings, shape (examples, width)."""
        raise NotImplementedError

    def prepare(self, study: Study) -> None:
        """Learn from the training requests. Raises InputError where there are none."""
        examples = examples_of(training_of(study, self.name), self.options.per == "request")
        self._predict = self.fit(text_encoder(self.options.encoder).encode([row.text for row in examples]), examples)

    def place(self, seen: Observation) -> Placement:
        """Judge the subtask's text, or remember what was decided of the request."""
        whole = self.options.per == "request"
        small = self._decided.get(seen.request) if whole else None
        if small is not None:
            return self._repeated[seen.small if small else seen.large]
        embedding = text_encoder(self.options.encoder).encode([subtask_text(seen.call.messages)])
        small = round(float(self._predict(embedding)[0]), 6) >= self.options.threshold
        if whole:
            self._decided[seen.request] = small
        return self._placements[seen.small if small else seen.large]

    def learn(self, row: RequestRow) -> None:
        """Forget a request that has ended."""
        self._decided.pop(row.request, None)


def examples_of(training: Study, first_only: bool) -> list[Example]:
    """The subtasks of the training requests, or with `first_only` the requests, for which a model then runs throughout."""
    models = two_models(training)
    found = list[Example]()
    for tree in grow_trees(training, training.tasks):
        if first_only:
            small, large = (tree.alone(model).score for model in models)
            alone = Worth(small, large)
            found.append(Example(tree.task.prompt, alone, alone))
            continue
        large_follows, coin_follows = worth(tree, models, 1.0), worth(tree, models, 0.5)
        for node in both_answered(tree, models):
            said = node.call.messages
            found.append(Example(subtask_text(said), large_follows[said], coin_follows[said]))
    return sampled(found)


def sampled(rows: list[Row]) -> list[Row]:
    """At most 4,000 of them, drawn evenly: embedding more takes minutes and teaches little."""
    return rows if len(rows) <= _MOST_EXAMPLES else random.Random(0).sample(rows, _MOST_EXAMPLES)


def soft_logistic_regression(embeddings: FloatArray, targets: FloatArray) -> Predictor:
    """Logistic regression on probabilities, shape (examples,): each example counts for both outcomes, in these parts."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if np.all(targets == targets[0]):
        return lambda asked: np.full(len(asked), float(targets[0]))
    rows, outcomes = np.vstack([embeddings, embeddings]), np.repeat([1, 0], len(targets))
    weights = np.concatenate([targets, 1 - targets])
    used = weights > 0
    with threadpool_limits(1):  # one thread always adds in the same order
        model = LogisticRegression(C=10.0, max_iter=2000).fit(rows[used], outcomes[used], sample_weight=weights[used])

    def predict(asked: FloatArray) -> FloatArray:
        odds: FloatArray = asked @ model.coef_[0] + model.intercept_[0]
        return 1 / (1 + np.exp(-odds))

    return predict


class HybridLlmOptions(TrainedOptions):
    """Options of `hybrid-llm`."""

    per: Literal["request", "subtask"] = "subtask"
    """Whether the first subtask decides for the whole request, or each subtask is judged by itself, as AIMS compares it."""
    labels: Literal["deterministic", "probabilistic", "transformed"] = "probabilistic"
    """What is learned: 1 where the small model is as good; the share of random continuations in which it is; or 1 where it is at
    most so much worse that the labels part the examples best."""


class HybridLlm(TrainedRouter):
    """Predict from the text whether the small model is about as good (Ding et al., ICLR 2024): three ways to label the examples.

    Their encoder is fine-tuned; this one is frozen, with logistic regression on top.
    """

    Options: ClassVar[type[PolicyOptions]] = HybridLlmOptions
    name: ClassVar[str] = "hybrid-llm"

    def fit(self, embeddings: FloatArray, examples: Sequence[Example]) -> Predictor:
        """Logistic regression on the labels."""
        return soft_logistic_regression(embeddings, self._labels(examples))

    def _labels(self, examples: Sequence[Example]) -> FloatArray:
        if self.options.labels == "deterministic":
            return np.array([float(row.large_follows.small >= row.large_follows.large) for row in examples])
        coin = np.array([row.coin_follows for row in examples])
        if self.options.labels == "probabilistic":
            # Of two independent continuations: not (small fails and large succeeds).
            either: FloatArray = 1 - (1 - coin[:, 0]) * coin[:, 1]
            return either
        return transformed_labels(coin[:, 0] - coin[:, 1])


def transformed_labels(gaps: FloatArray) -> FloatArray:
    """1 where the quality gap (small - large), shape (examples,), is at least -t, else 0; t >= 0 makes the labels differ most.

    Ding et al. (2024), equation 3: t maximises the mean |y_i - y_j| over pairs, 2 p (1 - p) at a share p of ones.
    """
    candidates = np.unique(np.concatenate([[0.0], -gaps[gaps < 0]]))
    shares = np.array([(gaps >= -t).mean() for t in candidates])
    best = candidates[int(np.argmax(shares * (1 - shares)))]
    labels: FloatArray = (gaps >= -best).astype(float)
    return labels


class SimilarityWeightedOptions(TrainedOptions):
    """Options of `similarity-weighted`."""

    gamma: Annotated[float, Field(gt=1.0)] = 10.0
    """Weight of a training request is gamma^(1 + cosine / largest cosine)."""


class SimilarityWeighted(TrainedRouter):
    """RouteLLM's similarity-weighted ranking (Ong et al., 2024): a Bradley-Terry model of two, fitted anew for each text.

    With two models its maximum likelihood is the weighted share of wins; a tie is half a win for either.
    """

    Options: ClassVar[type[PolicyOptions]] = SimilarityWeightedOptions
    name: ClassVar[str] = "similarity-weighted"

    def fit(self, embeddings: FloatArray, examples: Sequence[Example]) -> Predictor:
        """Remember the examples."""
        wins, gamma = win_shares(examples), self.options.gamma

        def predict(asked: FloatArray) -> FloatArray:
            cosines = asked @ embeddings.T
            weights = gamma ** (1 + cosines / np.maximum(cosines.max(axis=1, keepdims=True), 1e-9))
            share: FloatArray = (weights * wins).sum(axis=1) / weights.sum(axis=1)
            return share

        return predict


def win_shares(examples: Sequence[Example]) -> FloatArray:
    """1 where the small model did better, 0.5 for a tie, 0 where it did worse; shape (examples,)."""
    gaps = np.array([row.large_follows.small - row.large_follows.large for row in examples])
    shares: FloatArray = (np.sign(gaps) + 1) / 2
    return shares


class MatrixFactorisationOptions(TrainedOptions):
    """Options of `matrix-factorisation`."""

    width: Annotated[int, Field(ge=1)] = 16
    """Size of the models' vectors, to which the text's embedding is projected."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the first weights."""


class MatrixFactorisation(TrainedRouter):
    """RouteLLM's matrix factorisation (Ong et al., 2024): score(model, text) = w . (v_model * (W embedding + b)).

    P(the small model wins) = sigmoid(score(small) - score(large)), fitted to wins and ties by Adam with weight decay.
    """

    Options: ClassVar[type[PolicyOptions]] = MatrixFactorisationOptions
    name: ClassVar[str] = "matrix-factorisation"

    def fit(self, embeddings: FloatArray, examples: Sequence[Example]) -> Predictor:
        """Minimise the cross-entropy of the wins, full batch, on one thread."""
        import torch

        with one_thread():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.options.seed)
                project = torch.nn.Linear(embeddings.shape[1], self.options.width)
                difference = torch.nn.Linear(self.options.width, 1, bias=False)  # w * (v_small - v_large)
            known = torch.tensor(embeddings, dtype=torch.float32)
            wins = torch.tensor(win_shares(examples), dtype=torch.float32)
            parameters = [*project.parameters(), *difference.parameters()]
            optimiser = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.05)
            for _ in range(300):
                optimiser.zero_grad()
                odds = difference(project(known))[:, 0]
                torch.nn.functional.binary_cross_entropy_with_logits(odds, wins).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            direction = (difference.weight @ project.weight)[0].detach().numpy().astype(float)
            offset = float((difference.weight @ project.bias)[0].detach())
        return lambda asked: 1 / (1 + np.exp(-(asked @ direction + offset)))
