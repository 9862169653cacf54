"""The action sets of TMO: their order, their size and what makes none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.policies.base import Placement, TierView
from sim.tmo.actions import MOST_ACTIONS, Action, action_set, placement
from workloads.errors import InputError

LOCAL, CLOUD = TierView("phone", "slm", "tiny"), TierView("cloud", "llm", "huge")


def test_three_modalities_make_the_papers_nine_actions() -> None:
    """0 local; 1 cloud with the text; 2, 3, 4 one image; 5 = {0, 1}, 6 = {0, 2}, 7 = {1, 2}; 8 all three."""
    subsets = [(), ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    expected = (Action("phone"), *(Action("cloud", subset) for subset in subsets))
    assert action_set((LOCAL, CLOUD), ("a", "b", "c")) == expected
    assert action_set((CLOUD, LOCAL), ("a", "b", "c")) == expected, "small tiers come first in any case"


@given(
    roles=st.lists(st.tuples(st.sampled_from(["slm", "llm"]), st.sampled_from([None, True, False])), min_size=1, max_size=4),
    modalities=st.integers(0, 6), most=st.none() | st.integers(0, 7),
)  # fmt: skip
def test_every_tier_has_every_subset_it_sees_once(
    roles: list[tuple[str, bool | None]], modalities: int, most: int | None
) -> None:
    """Sizes are binomial sums; no action occurs twice; subsets keep the order of the modalities and grow."""
    tiers = [TierView(f"t{i}", role, f"m{i}", multimodal=sees) for i, (role, sees) in enumerate(roles)]
    names = [f"x{i}" for i in range(modalities)]
    actions = action_set(tiers, names, most)
    assert len(set(actions)) == len(actions)
    largest = modalities if most is None else min(most, modalities)
    for tier, (role, sees) in zip(tiers, roles, strict=True):
        own = [action.modalities for action in actions if action.tier == tier.name]
        can_see = role == "llm" if sees is None else sees
        assert len(own) == (sum(math.comb(modalities, k) for k in range(largest + 1)) if can_see else 1)
        assert own[0] == ()
        assert [len(subset) for subset in own] == sorted(len(subset) for subset in own)
        for size in range(largest + 1):
            of_size = [tuple(map(names.index, subset)) for subset in own if len(subset) == size]
            assert of_size == sorted(of_size)
            assert all(subset == tuple(sorted(subset)) for subset in of_size)


def test_an_action_is_a_placement_that_names_its_modalities() -> None:
    """No modalities means none, not all."""
    assert placement(Action("cloud", ("a",)), "why") == Placement("cloud", "why", ("a",))
    assert placement(Action("cloud")).modalities == ()
    assert str(Action("cloud", ("a", "b"))) == "cloud+a+b"


@pytest.mark.parametrize(
    ("tiers", "names", "most", "words"),
    [
        ((), ("a",), None, "no tier"),
        ((CLOUD,), ("a", "b", "a"), None, "occurs twice"),
        ((CLOUD,), ("a",), -1, "at most -1"),
        ((CLOUD,), tuple(map(str, range(20))), None, f"At most {MOST_ACTIONS} are allowed"),
    ],
)
def test_what_makes_no_action_set_is_one_message(
    tiers: tuple[TierView, ...], names: tuple[str, ...], most: int | None, words: str
) -> None:
    """No tiers, a modality named twice, fewer than no modalities, more subsets than anybody can choose from."""
    with pytest.raises(InputError, match=words):
        action_set(tiers, names, most)
    if words.startswith("At most"):
        assert len(action_set(tiers, names, 2)) == 1 + 20 + 190
