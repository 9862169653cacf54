"""What is reusable of a prompt: by conversation, by content, with lifetime, granularity and capacity."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.prompt_cache import PREFIX_BLOCK_TOKENS, PromptCache
from workloads.errors import InputError


def test_a_conversation_reuses_prompt_and_answer():
    """After 100 prompt and 20 answer tokens the next prompt of 150 has 120 cached; another conversation none."""
    cache = PromptCache()
    assert cache.lookup("a", 100, (), 0.0) == 0
    cache.store("a", 120, (), 1.0)
    assert cache.lookup("a", 150, (), 2.0) == 120
    assert cache.lookup("a", 50, (), 2.0) == 50
    assert cache.lookup("b", 150, (), 2.0) == 0


def test_a_use_renews_the_lifetime():
    """Looked up every 200 s an entry of 300 s stays; left alone for more than 300 s it is gone."""
    cache = PromptCache(300.0)
    cache.store("a", 100, (), 0.0)
    assert [cache.lookup("a", 100, (), now) for now in (200.0, 400.0, 700.0)] == [100, 100, 100]
    assert cache.lookup("a", 100, (), 1000.1) == 0
    assert cache.tokens_held == 0


def test_hits_are_whole_blocks_above_the_minimum():
    """Providers cache in steps of 128 tokens from 1,024 on."""
    cache = PromptCache(block_tokens=128, minimum_tokens=1024)
    cache.store("short", 1023, (), 0.0)
    cache.store("long", 1300, (), 0.0)
    assert cache.lookup("short", 2000, (), 0.0) == 0
    assert cache.lookup("long", 2000, (), 0.0) == 1280


def test_leading_blocks_are_shared_between_conversations():
    """Only the unbroken run of known blocks from the start counts, at most the whole prompt."""
    cache = PromptCache()
    cache.store("a", 1600, (1, 2, 3, 4), 0.0)
    assert cache.lookup("b", 2000, (1, 2, 9, 4), 0.0) == 2 * PREFIX_BLOCK_TOKENS
    assert cache.lookup("b", 2000, (9, 2, 3, 4), 0.0) == 0
    assert cache.lookup("b", 1600, (1, 2, 3, 4), 0.0) == 1600


def test_least_recently_used_conversation_goes_first():
    """With room for 250 tokens the third conversation of 100 displaces the one not used since."""
    cache = PromptCache(capacity_tokens=250)
    cache.store("a", 100, (), 0.0)
    cache.store("b", 100, (), 1.0)
    assert cache.lookup("a", 100, (), 2.0) == 100
    cache.store("c", 100, (), 3.0)
    assert [cache.lookup(name, 100, (), 4.0) for name in "abc"] == [100, 0, 100]


def test_a_prefix_outlives_its_continuation():
    """When memory runs out the last blocks go first: the first block alone is still useful, the last alone is not."""
    cache = PromptCache(capacity_tokens=3 * PREFIX_BLOCK_TOKENS)
    cache.store("a", 3 * PREFIX_BLOCK_TOKENS, (1, 2, 3), 0.0)
    cache.store("b", PREFIX_BLOCK_TOKENS, (7,), 1.0)
    assert cache.lookup("c", 5000, (1, 2, 3), 2.0) == 2 * PREFIX_BLOCK_TOKENS


def test_clear_forgets_everything():
    """A crashed device starts cold."""
    cache = PromptCache()
    cache.store("a", 100, (1,), 0.0)
    cache.clear()
    assert (cache.lookup("a", 100, (1,), 0.0), cache.tokens_held) == (0, 0)


uses = st.tuples(
    st.integers(0, 4),
    st.integers(0, 3000),
    st.lists(st.integers(0, 5), max_size=4, unique=True),  # hashes are chained: no prompt holds one twice
    st.floats(0.0, 50.0),
    st.booleans(),
)


@given(st.lists(uses, max_size=40), st.one_of(st.none(), st.integers(0, 5000)), st.sampled_from([20.0, math.inf]))
def test_accounts_stay_right_whatever_is_asked(uses, capacity, lifetime_s):
    """Never more cached than asked or ever stored, never more held than fits, and what is held is what is counted."""
    cache = PromptCache(lifetime_s, 16, capacity)
    now, longest = 0.0, 0
    for conversation, tokens, blocks, gap_s, storing in uses:
        now += gap_s
        if storing:
            cache.store(conversation, tokens, tuple(blocks), now)
            longest = max(longest, tokens, PREFIX_BLOCK_TOKENS * len(blocks))
        else:
            cached = cache.lookup(conversation, tokens, tuple(blocks), now)
            assert 0 <= cached <= min(tokens, longest)
            assert cached % 16 == 0
        assert 0 <= cache.tokens_held <= (math.inf if capacity is None else capacity)
    cache.clear()
    assert cache.tokens_held == 0


def test_recorded_prefixes_repeat(shared_data):
    """On the Mooncake trace an unlimited cache finds as many tokens as a plain set of seen blocks."""
    cache, found, expected = PromptCache(), 0, 0
    seen: set[int] = set()
    with shared_data("llm_arrivals/mooncake_synthetic.jsonl").open() as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            blocks = tuple(row["hash_ids"])
            run = next((i for i, block in enumerate(blocks) if block not in seen), len(blocks))
            expected += min(run * PREFIX_BLOCK_TOKENS, row["input_length"])
            seen.update(blocks)
            found += cache.lookup(number, row["input_length"], blocks, row["timestamp"] / 1e3)
            cache.store(number, row["input_length"] + row["output_length"], blocks, row["timestamp"] / 1e3)
    assert found == expected > 0


@pytest.mark.parametrize("options", [{"lifetime_s": 0.0}, {"block_tokens": 0}, {"capacity_tokens": -1}])
def test_bad_settings_are_named(options):
    """Impossible settings raise an InputError that names the field."""
    with pytest.raises(InputError, match=next(iter(options))):
        PromptCache(**options)
