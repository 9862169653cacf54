"""Which leading part of a prompt a model server still holds: the prompt (key-value) cache.

Two ways to recognise a prefix, of which the longer counts. By conversation: an agent's next prompt begins with its last
prompt and answer, so what this server has processed of the conversation is reusable. By content: hashes of the prompt's
leading blocks of 512 tokens, as in the Mooncake traces (R. Qin et al., FAST 2025), shared between conversations.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from workloads.errors import InputError

PREFIX_BLOCK_TOKENS = 512
"""Tokens per entry of `prefix_blocks`, the granularity of the Mooncake traces; the last block may be shorter."""


class PromptCache:
    """Least-recently-used prefixes of one replica or one endpoint.

    An entry lives `lifetime_s` after its last use (hosted APIs: 300-600 s; a device: math.inf). A hit is rounded down
    to whole `block_tokens` (vLLM 16, OpenAI 128) and counts only from `minimum_tokens` on (hosted APIs: 1024).
    Beyond `capacity_tokens` (None: unlimited) the least recently used entries go, a conversation as a whole.
    """

    def __init__(
        self,
        lifetime_s: float = math.inf,
        block_tokens: int = 1,
        capacity_tokens: int | None = None,
        *,
        minimum_tokens: int = 0,
    ) -> None:
        if not lifetime_s > 0.0:
            raise InputError("prompt cache: lifetime_s", f"found {lifetime_s}", "Give a positive number of seconds.")
        if block_tokens < 1:
            raise InputError("prompt cache: block_tokens", f"found {block_tokens}", "Give at least 1 token.")
        if capacity_tokens is not None and capacity_tokens < 0:
            raise InputError("prompt cache: capacity_tokens", f"found {capacity_tokens}", "Give 0 or more tokens.")
        self.lifetime_s, self.block_tokens, self.minimum_tokens = lifetime_s, block_tokens, minimum_tokens
        self.capacity_tokens: float = math.inf if capacity_tokens is None else capacity_tokens
        self.tokens_held = 0
        # Key: (True, block hash) or (False, conversation). Value: (tokens of memory, reusable tokens, last use in s).
        # In order of last use, hence also of expiry.
        self._entries: OrderedDict[tuple[bool, Hashable], tuple[int, int, float]] = OrderedDict()

    def lookup(self, conversation_id: Hashable, prompt_tokens: int, prefix_blocks: Sequence[int], now: float) -> int:
        """How many leading tokens of this prompt need no prefill; what is found counts as used now."""
        self._expire(now)
        entries = self._entries
        held = entries.get((False, conversation_id))
        found = 0
        if held is not None:
            found = held[1]
            self._put((False, conversation_id), held[0], found, now)
        run = 0
        for block in prefix_blocks:
            if (True, block) not in entries:
                break
            run += 1
        if run:
            self._put_blocks(prefix_blocks[:run], now)
            found = max(found, run * PREFIX_BLOCK_TOKENS)
        found = min(found, prompt_tokens)
        found -= found % self.block_tokens
        return found if found >= self.minimum_tokens else 0

    def store(self, conversation_id: Hashable, tokens: int, prefix_blocks: Sequence[int], now: float) -> None:
        """Remember a processed conversation of `tokens` (prompt and answer) and its prompt's leading blocks."""
        self._expire(now)
        # What the blocks hold is not held a second time; the conversation goes first so that its blocks outlive it.
        own = max(0, tokens - PREFIX_BLOCK_TOKENS * len(prefix_blocks))
        self._put((False, conversation_id), own, tokens, now)
        self._put_blocks(prefix_blocks, now)
        while self.tokens_held > self.capacity_tokens and self._entries:
            self._drop_oldest()

    def clear(self) -> None:
        """Forget everything, as after a crash."""
        self._entries.clear()
        self.tokens_held = 0

    def _put_blocks(self, blocks: Sequence[int], now: float) -> None:
        # Last block first: a prefix must outlive its continuation, which is useless without it.
        for block in reversed(blocks):
            self._put((True, block), PREFIX_BLOCK_TOKENS, PREFIX_BLOCK_TOKENS, now)

    def _put(self, key: tuple[bool, Hashable], memory: int, reusable: int, now: float) -> None:
        entries = self._entries
        before = entries.get(key)
        if before is not None:
            self.tokens_held -= before[0]
        entries[key] = (memory, reusable, now)
        if before is not None:
            entries.move_to_end(key)
        self.tokens_held += memory

    def _expire(self, now: float) -> None:
        entries = self._entries
        while entries and now - next(iter(entries.values()))[2] > self.lifetime_s:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (memory, _, _) = self._entries.popitem(last=False)
        self.tokens_held -= memory
