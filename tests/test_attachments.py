"""Attachments on their way: which of them travel, what they add to the prompt, who sees them, and what bad placements say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.policies.base import Observation, Placement
from sim.records import Records
from tests.helpers import Chosen, Step, api, device, link, placing, rows, run, scenario, scripted_answer, slots, task
from workloads.backend import ScriptedBackend
from workloads.errors import InputError
from workloads.task import Attachment, Completion, ModelCall

PICTURES = (Attachment("front", 1_000_000, 500), Attachment("back", 250_000, 300))
NO_BYTES = Step(upload_bytes=0, download_bytes=0)
BOTH = {"edge": device(), "cloud": device("llm")}


def turns(*placements: Placement, tiers: dict[str, Any] | None = None, **fields: Any) -> Records:
    """Two pictures could go along with every subtask; subtask i is placed as given."""
    world = scenario(tiers or BOTH, links=(link("home", "cloud"),), **fields)
    steps = [NO_BYTES] * len(placements)
    return run(world, [task(*steps, attachments=PICTURES)], Chosen(lambda seen: placements[seen.call.position]))


def test_the_tokens_of_what_is_sent_along_join_the_prompt() -> None:
    """100 tokens of text, 500 and 300 of pictures: prefilled at 1000 tokens/s, and in the row that the API's prices see."""
    cloud = [Placement("cloud", modalities=names) for names in ((), ("back",), ("front", "back"))]
    found = [
        (row["prompt_tokens"], round(row["prefill_s"], 6), row["upload_bytes"])
        for placement in cloud
        for row in rows(turns(placement).subtasks)
    ]
    assert found == [(100, 0.1, 0.0), (400, 0.4, 250_000.0), (900, 0.9, 1_250_000.0)]


def test_the_input_price_counts_them() -> None:
    """At 1 $ per million tokens, 900 tokens cost 900 times a millionth."""
    pricing = {"tokens": {"cloud": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 0.0}}}
    record = turns(Placement("cloud"), pricing=pricing)
    assert record.subtasks["api_input_usd"][0] == pytest.approx(900e-6)


def test_a_context_that_they_do_not_fit_into_is_refused() -> None:
    """A device with memory for 600 tokens takes the text, and with both pictures is `oversized`."""
    small = device("llm")
    small["device"] = {**small["device"], "memory_gbytes": 0.0506}
    small["model"] = {**small["model"], "kv_bytes_per_token": 1000.0}
    client = {"stream": False, "fail_over": False}
    for modalities, status in (((), "ok"), (("front", "back"), "oversized")):
        record = turns(Placement("cloud", modalities=modalities), tiers={"cloud": small}, client=client)
        assert record.subtasks["status"].tolist() == [status]


def test_a_tier_that_sees_none_gets_none() -> None:
    """Where nobody says, models of role slm take no attachments: a placement that names none sends none there."""
    for said, expected in ((None, (100, 0.0)), (True, (900, 1_250_000.0))):
        tiers = {"edge": device(multimodal=said)}
        world = scenario(tiers, links=(link("home", "edge"),))
        row = rows(run(world, [task(NO_BYTES, attachments=PICTURES)], placing(Placement("edge"))).subtasks)[0]
        assert (row["prompt_tokens"], row["upload_bytes"]) == expected


def test_failing_over_to_a_blind_tier_leaves_the_attachments_behind() -> None:
    """What was sent with pictures fails over to a model that sees none: without them, and that is no error of the policy's."""
    tiers = {"edge": device(), "cloud": api(rpm=0.001)}
    world = scenario(tiers, links=(link("home", "cloud"),), client={"stream": False, "retries": 0})
    tasks = [task(NO_BYTES, attachments=PICTURES)] * 2
    second = rows(run(world, tasks, placing(Placement("cloud", modalities=("front",)))).subtasks)
    by_tier = {row["tier"]: row for row in second if row["status"] == "ok"}
    assert by_tier[1]["prompt_tokens"] == 600
    assert by_tier[0]["prompt_tokens"] == 100


def test_every_turn_sends_its_own_unless_they_are_kept() -> None:
    """Kept attachments travel once per tier, are seen from then on, and count in every later prompt there."""
    front, back, none = (Placement("cloud", modalities=names) for names in (("front",), ("back",), ()))
    placements = (front, none, Placement("edge"), back, none)
    anew = rows(turns(*placements).subtasks)
    assert [row["upload_bytes"] for row in anew] == [1e6, 0, 0, 250_000, 0]
    assert [row["prompt_tokens"] for row in anew] == [600, 100, 100, 400, 100]
    kept = rows(turns(*placements, client={"stream": False, "keep_attachments": True}).subtasks)
    assert [row["upload_bytes"] for row in kept] == [1e6, 0, 0, 250_000, 0]
    assert [row["prompt_tokens"] for row in kept] == [600, 600, 100, 900, 900]
    again = rows(turns(front, front, client={"stream": False, "keep_attachments": True}).subtasks)
    assert [row["upload_bytes"] for row in again] == [1e6, 0]


def test_a_cached_prompt_is_of_use_with_the_same_attachments_only() -> None:
    """What leads the prompt decides: the same picture again finds its 600 tokens and the answer, another one finds nothing."""
    front, back = (Placement("cloud", modalities=(name,)) for name in ("front", "back"))
    same, other = rows(turns(front, front).subtasks), rows(turns(front, back).subtasks)
    assert [row["cached_tokens"] for row in same] == [0, 592]  # 600 in whole blocks of 16
    assert [row["cached_tokens"] for row in other] == [0, 0]


def test_the_backend_is_shown_what_the_model_sees() -> None:
    """A backend gets the attachments that its model sees, in the task's order, and their tokens in the prompt."""
    shown: list[tuple[str, ...]] = []

    def answer(call: ModelCall, model: str) -> Completion:
        assert call.attachments is not None
        shown.append(tuple(attachment.name for attachment in call.attachments))
        return scripted_answer(call, model)

    for placement in (Placement("cloud", modalities=("back", "front")), Placement("cloud"), Placement("edge")):
        run(scenario(BOTH), [task(attachments=PICTURES)], placing(placement), backend=ScriptedBackend(answer))
    assert shown == [("front", "back"), ("front", "back"), ()]


def test_a_turn_keeps_its_grade_in_the_subtask_table() -> None:
    """`score` is the grade of each answer on its own, NaN where it has none."""

    def answer(call: ModelCall, model: str) -> Completion:
        graded = scripted_answer(call, model)
        return graded._replace(score=0.25) if call.position else graded

    record = run(scenario(BOTH), [task(Step(), Step())], placing(Placement("edge")), backend=ScriptedBackend(answer))
    scores = record.subtasks["score"].tolist()
    assert scores[0] != scores[0]
    assert scores[1] == 0.25


@pytest.mark.parametrize(
    ("placement", "attachments", "words"),
    [
        (
            Placement("cloud", modalities=("frnt",)),
            PICTURES,
            r"'frnt', which the task does not have. Did you mean 'front'",
        ),
        (Placement("cloud", modalities=("front",)), (), "has no attachments"),
        (Placement("edge", modalities=("front",)), PICTURES, "tiers.edge.multimodal"),
    ],
)
def test_modalities_that_cannot_be_sent_are_one_message(
    placement: Placement, attachments: tuple[Attachment, ...], words: str
) -> None:
    """An attachment the task does not have, or a model that takes none, stops the run and says what to do."""
    world = scenario({"edge": slots(), "cloud": slots("llm")})
    with pytest.raises(InputError, match=words):
        run(world, [task(attachments=attachments)], placing(placement))


def test_policies_see_which_tiers_take_attachments() -> None:
    """The views of the tiers tell."""
    found: dict[str, bool] = {}

    def look(seen: Observation) -> str:
        found.update({tier.name: tier.sees_modalities for tier in seen.tiers})
        return "edge"

    tiers = {
        "edge": slots(),
        "box": slots(multimodal=True),
        "cloud": slots("llm"),
        "text": slots("llm", multimodal=False),
    }
    run(scenario(tiers), [task()], Chosen(look))
    assert found == {"edge": False, "box": True, "cloud": True, "text": False}


SUBSETS = st.none() | st.lists(st.sampled_from(["front", "back"]), unique=True).map(tuple)


@given(
    placements=st.lists(st.tuples(st.sampled_from(["edge", "box", "cloud"]), SUBSETS), min_size=1, max_size=6),
    keep=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_bytes_and_tokens_add_up_over_any_dialogue(
    placements: list[tuple[str, tuple[str, ...] | None]], keep: bool
) -> None:
    """Against a plain reckoning: what a tier sees counts in its prompts, what it does not hold yet travels there."""
    tiers = {"edge": device(), "box": device(multimodal=True), "cloud": device("llm")}
    world = scenario(tiers, client={"stream": False, "keep_attachments": keep})
    asked = [
        Placement(tier, modalities=() if tier == "edge" and names else names) for tier, names in placements
    ]  # fmt: skip
    steps = [NO_BYTES] * len(asked)
    policy = Chosen(lambda seen: asked[seen.call.position])
    found = rows(run(world, [task(*steps, attachments=PICTURES)], policy).subtasks)
    held: dict[str, set[str]] = {}
    for row, placement in zip(found, asked, strict=True):
        wanted = {"front", "back"} if placement.modalities is None else set(placement.modalities)
        has = held.setdefault(placement.tier, set())
        sees = set() if placement.tier == "edge" else wanted | has
        assert row["prompt_tokens"] == 100 + sum(a.tokens for a in PICTURES if a.name in sees)
        assert row["upload_bytes"] == sum(a.size_bytes for a in PICTURES if a.name in sees - has)
        has |= sees if keep else set()
