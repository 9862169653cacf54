"""Conversations as tokens and tokens as text: the chat template, what stands in where it lacks a role, and text as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workloads.errors import InputError, suggest
from workloads.task import Message

ROLES = ("system", "user", "assistant", "tool")

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""What a tokenizer without a chat template gets: a line `role: content` per message, then `assistant:`."""

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class ChatFormat:
    """How one model reads conversations. Safe to use from several threads.

    The template is the one given, else the tokenizer's own, else PLAIN_TEMPLATE. Where it refuses or drops a role:

    - a tool message becomes a user message `Tool result: ...`;
    - a system message becomes a user message, joined with the one after it;
    - messages of the same role in a row are joined by an empty line.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self._tokenizer = tokenizer
        if template is not None:
            tokenizer.chat_template = template
        self._plain = not tokenizer.chat_template
        if self._plain:
            tokenizer.chat_template = PLAIN_TEMPLATE
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:  # left on by some files, it would cut or fill up every conversation
            self._backend.no_padding()
            self._backend.no_truncation()
        self._probe("of the scenario" if template is not None else "of the tokenizer")

    def _probe(self, whose: str) -> None:
        """Find out what the template accepts by rendering short conversations."""
        user, answer = Message("user", "alpha"), Message("assistant", "beta")
        problem = self._problem(user)
        if problem:
            remedy = "Give a chat template that renders user messages"
            raise InputError(f"chat template {whose}", problem, remedy)
        self._has_tool = not self._problem(user, answer, Message("tool", "gamma"))
        self._has_system = not self._problem(Message("system", "gamma"), user)
        self._joins = not self._has_system or bool(self._problem(user, Message("user", "gamma")))

    def _problem(self, *messages: Message) -> str:
        try:
            text = self._render(messages)
        except Exception as error:  # a template may raise anything
            return f"it raises {type(error).__name__}: {str(error)[:200]}"
        lost = [message.role for message in messages if message.content not in text]
        return f"it drops the {lost[0]} message" if lost else ""

    def _render(self, messages: Sequence[Message]) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        text: str = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return text

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt as text; InputError for a conversation that cannot be rendered."""
        for index, message in enumerate(messages):
            if message.role not in ROLES:
                raise InputError(f"message {index}: role", f"found {message.role!r}", suggest(str(message.role), ROLES))
        try:
            return self._render(self._fitted(messages))
        except Exception as error:
            problem = f"the model's chat template refuses it ({str(error)[:200]})"
            raise InputError("conversation", problem, "Alternate user and assistant, the user first") from None

    def _fitted(self, messages: Sequence[Message]) -> list[Message]:
        fitted: list[Message] = []
        for role, content in messages:
            if role == "tool" and not self._has_tool:
                role, content = "user", f"Tool result: {content}"
            elif role == "system" and not self._has_system:
                role = "user"
            if self._joins and fitted and fitted[-1].role == role:
                content = f"{fitted.pop().content}\n\n{content}"
            fitted.append(Message(role, content))
        return fitted

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids, the opening of the assistant's turn included."""
        text = self.text(messages)
        if self._backend is not None:  # the wrapper around it is slower and not safe in threads
            ids: list[int] = self._backend.encode(text, add_special_tokens=self._plain).ids
        else:
            ids = self._tokenizer(text, add_special_tokens=self._plain)["input_ids"]
        if self._plain and ids and ids[-1] == self._tokenizer.eos_token_id:
            ids.pop()
        if not ids:
            raise InputError("conversation", "has no tokens", "Give at least one message")
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )  # fmt: skip
        return text


class GrowingText:
    """Text that grows with every token and is never taken back: half a character waits for its other half."""

    def __init__(self, format_: ChatFormat) -> None:
        self._format, self.text = format_, ""
        self._tokens: list[int] = []
        self._context = self._read = 0

    def add(self, token: int) -> str:
        """The piece of text that is certain after this token, often empty.

        Decoding starts a piece before the new tokens, as many tokenizers drop or add a space at the beginning of a text.
        """
        self._tokens.append(token)
        before = self._format.decode(self._tokens[self._context : self._read])
        after = self._format.decode(self._tokens[self._context :])
        if after.endswith(_BROKEN) or len(after) <= len(before):
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return self._extend(after[len(before) :])

    def finish(self) -> str:
        """The rest, broken characters and all."""
        whole = self._format.decode(self._tokens)
        if whole.startswith(self.text):
            return self._extend(whole[len(self.text) :])
        before = self._format.decode(self._tokens[self._context : self._read])
        return self._extend(self._format.decode(self._tokens[self._context :])[len(before) :])

    def _extend(self, piece: str) -> str:
        self.text += piece
        return piece
