"""An upstream's answer, read from one document or gathered from a stream.

The client library does not check what it receives: any field can be missing or of any type. What is read here raises
AttributeError, TypeError, LookupError or ValueError where it is no completion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from serve.generation import Generation

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
    from openai.types.completion_usage import CompletionUsage

_BYTES_PER_TOKEN = 4.0
"""English text under the tokenizers of large models; used only where the upstream reports no usage."""


def estimated_tokens(text: str) -> int:
    """Tokens of a text nobody counted."""
    return math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)


@dataclass(slots=True)
class Answer:
    """What has come so far. `first_s` is the time of the first piece of text, on the caller's clock."""

    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: CompletionUsage | None = None
    first_s: float = math.nan

    def read(self, document: ChatCompletion) -> None:
        """Take a whole answer."""
        choice = document.choices[0]
        self.text = _text(choice.message.content) or _text(choice.message.refusal)
        self._ended(choice)
        self.usage = document.usage

    def read_piece(self, chunk: ChatCompletionChunk, now_s: float) -> str:
        """Take one event of a stream and return the text it brings, which may be empty."""
        self.usage = chunk.usage or self.usage
        if not chunk.choices:  # the event that carries the usage
            return ""
        choice = chunk.choices[0]
        piece = _text(choice.delta.content) or _text(choice.delta.refusal)
        if piece and not self.text:
            self.first_s = now_s
        self.text += piece
        self._ended(choice)
        return piece

    def generation(self, prompt_tokens: int, queue_s: float, started_s: float, ended_s: float) -> Generation:
        """The whole answer; `prompt_tokens` stands in where the upstream reports no usage.

        Without a first piece (not streamed, or empty) `prefill_s` is NaN and `decode_s` all the time since sending.
        """
        if self.finish_reason is None:
            raise ValueError("it ended before its finish_reason came")
        completion_tokens, cached_tokens = max(len(self.logprobs), estimated_tokens(self.text)), 0
        if self.usage is not None:
            prompt_tokens, completion_tokens = _count(self.usage.prompt_tokens), _count(self.usage.completion_tokens)
            details = self.usage.prompt_tokens_details
            cached_tokens = min(prompt_tokens, _count(details.cached_tokens or 0)) if details else 0
        streamed = not math.isnan(self.first_s)
        return Generation(
            text=self.text,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            mean_logprob=math.fsum(self.logprobs) / len(self.logprobs) if self.logprobs else math.nan,
            prefill_s=self.first_s - started_s if streamed else math.nan,
            decode_s=ended_s - (self.first_s if streamed else started_s),
            finish_reason=self.finish_reason,
            cached_tokens=cached_tokens,
            queue_s=queue_s,
        )

    def _ended(self, choice: Any) -> None:
        self.finish_reason = choice.finish_reason or self.finish_reason
        if choice.logprobs and choice.logprobs.content:
            self.logprobs += [float(token.logprob) for token in choice.logprobs.content]


def _text(found: Any) -> str:
    if found is not None and not isinstance(found, str):
        raise TypeError("its text is no string")
    return found or ""


def _count(found: Any) -> int:
    if not isinstance(found, int) or found < 0:
        raise TypeError("its usage is no count of tokens")
    return found
