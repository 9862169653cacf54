"""Why a model hosted here could not answer a call; each is a ModelUnavailable with its reason.

ModelUnavailable
├── PromptTooLong  prompt-too-long: the conversation leaves no room for an answer in the model's context
├── EngineBusy     overloaded: the waiting line is full
├── EngineClosed   replica-died: the engine is shut down or about to be
└── ModelFailed    bad-answer: the model raised, or computed something that is not a number

A request that passed its deadline ends in the built-in TimeoutError, a cancelled one in concurrent.futures.CancelledError.
"""

from __future__ import annotations

from workloads.errors import ModelUnavailable


class PromptTooLong(ModelUnavailable):
    """The conversation leaves no room for an answer in the model's context."""

    def __init__(self, prompt_tokens: int, context_tokens: int) -> None:
        self.prompt_tokens, self.context_tokens = prompt_tokens, context_tokens
        super().__init__(
            "prompt-too-long",
            f"the conversation has {prompt_tokens} tokens, the model's context holds {context_tokens} with the answer",
        )

    def __reduce__(self) -> tuple[type, tuple[int, int]]:  # type: ignore[override]
        return type(self), (self.prompt_tokens, self.context_tokens)


class _Told(ModelUnavailable):
    """One of a fixed reason."""

    REASON = ""

    def __init__(self, detail: str) -> None:
        super().__init__(self.REASON, detail)

    def __reduce__(self) -> tuple[type, tuple[str]]:  # type: ignore[override]
        return type(self), (self.detail,)


class EngineBusy(_Told):
    """The waiting line is full; try again later."""

    REASON = "overloaded"


class EngineClosed(_Told):
    """The engine is shut down or about to be."""

    REASON = "replica-died"


class ModelFailed(_Told):
    """The model raised an exception, or computed something that is not a number."""

    REASON = "bad-answer"
