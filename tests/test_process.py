"""The life of one request by hand: every phase, every way an attempt can end, and what the client does about it."""

from __future__ import annotations

import math

import pytest

from sim.policies.base import Placement
from tests.helpers import (
    Step,
    always,
    api,
    attempts_of,
    device,
    link,
    phases,
    placing,
    rows,
    run,
    scenario,
    slots,
    spaced,
    task,
)
from workloads.errors import InputError
from workloads.task import Attachment

HOME_EDGE = link("home", "edge")
EDGE_ONLY = {"edge": slots()}


# ------------------------------------------------------------------------------------------------------ a plain request


def test_a_request_by_hand() -> None:
    """Tool 0.3 s, decision 0.05 s, 0.5 MB up, 2 s of service, 0.1 MB down, over a link of 1 MB/s and 0.1 s."""
    world = scenario(EDGE_ONLY, links=(HOME_EDGE,))
    records = run(world, [task(Step(tool_s=0.3))], always("edge", decision_s=0.05), [1.0])
    (row,) = rows(records.subtasks)
    expected = [("tool_s", 0.3), ("decision_s", 0.05), ("uplink_s", 0.6), ("decode_s", 2.0), ("downlink_s", 0.2)]
    assert phases(row) == expected
    assert (row["start_s"], row["status"], row["tier"], row["attempt"]) == (1.0, "ok", 0, 0)
    assert row["end_s"] == pytest.approx(4.15)
    assert (row["upload_bytes"], row["download_bytes"]) == (500_000, 100_000)
    (request,) = rows(records.requests)
    assert (request["status"], request["subtasks"], request["slm_subtasks"], request["score"]) == (
        "completed",
        1,
        1,
        1.0,
    )
    assert request["latency_s"] == pytest.approx(3.15)


def test_a_second_request_waits_in_the_queue() -> None:
    """The second one's answer is served when the first has left the only slot."""
    records = run(scenario(EDGE_ONLY, links=(HOME_EDGE,)), [task(), task()], always("edge"), [0.0, 1.0])
    assert phases(rows(records.subtasks)[1]) == [
        ("uplink_s", 0.6), ("queue_s", 1.0), ("decode_s", 2.0), ("downlink_s", 0.2)
    ]  # fmt: skip


def test_uploads_share_the_link() -> None:
    """Two uploads of 0.5 MB at once take 1 s each; with links of their own (or an unshared one) 0.5 s."""
    tiers = {"edge": slots(slots=2)}
    shared = run(scenario(tiers, links=(HOME_EDGE,)), [task(), task()], always("edge"))
    assert [row["uplink_s"] for row in rows(shared.subtasks)] == pytest.approx([1.1, 1.1])
    unshared = run(scenario(tiers, links=(link("home", "edge", shared=False),)), [task(), task()], always("edge"))
    assert [row["uplink_s"] for row in rows(unshared.subtasks)] == pytest.approx([0.6, 0.6])
    homes = {"tasks": {"kind": "modelled"}, "homes": 2}
    own = scenario(tiers, links=(link("home", "edge", per_home=True),), workload=homes)
    records = run(own, [task(), task()], always("edge"))
    assert [row["uplink_s"] for row in rows(records.subtasks)] == pytest.approx([0.6, 0.6])
    assert records.requests["home"].tolist() == [0, 1]


def test_phases_of_an_endpoint() -> None:
    """An endpoint tells when the first token came: 0.4 s of prefill, then 20 tokens at 10 tokens/s."""
    records = run(scenario({"cloud": api()}), [task()], always("cloud"))
    assert phases(rows(records.subtasks)[0]) == [("prefill_s", 0.4), ("decode_s", 2.0)]


def test_phases_of_a_device() -> None:
    """100 prompt tokens at 1000 tokens/s, then 20 decoding steps of 0.05 s; a device alone at home has no network."""
    records = run(scenario({"edge": device()}), [task()], always("edge"))
    row = rows(records.subtasks)[0]
    assert phases(row) == [("prefill_s", 0.1), ("decode_s", 1.0)]
    assert row["device_s"] == pytest.approx(1.1)


def test_a_measured_answer_takes_its_measured_time() -> None:
    """With service_time measured, a plain queue serves for the recorded seconds and splits them as recorded."""
    world = scenario(EDGE_ONLY, inference={"service_time": "measured"})
    records = run(world, [task(Step(prefill_s=0.7, decode_s=0.8))], always("edge"))
    assert phases(rows(records.subtasks)[0]) == [("prefill_s", 0.7), ("decode_s", 0.8)]


@pytest.mark.parametrize("kind", ["slots", "endpoint", "device"])
def test_an_answer_without_a_first_token_takes_its_whole_time(kind: str) -> None:
    """An API that does not stream tells one time for all: that is how long service takes, behind whatever kind of tier."""
    kinds = {"slots": slots(), "endpoint": api(), "device": device()}
    world = scenario({"cloud": kinds[kind]}, inference={"service_time": "measured"})
    (row,) = rows(run(world, [task(Step(decode_s=1.5))], always("cloud")).subtasks)
    assert row["prefill_s"] + row["decode_s"] == pytest.approx(1.5)
    assert row["end_s"] - row["start_s"] == pytest.approx(1.5)


@pytest.mark.parametrize("kind", ["slots", "endpoint", "device"])
def test_a_measured_time_that_is_missing_is_said(kind: str) -> None:
    """No tier falls back on its profile unasked."""
    kinds = {"slots": slots(), "endpoint": api(), "device": device()}
    world = scenario({"cloud": kinds[kind]}, inference={"service_time": "measured"})
    with pytest.raises(InputError, match=r"'cloud' \(tier cloud\) hold no measured times.*service_time: profile"):
        run(world, [task(Step(prefill_s=0.4))], always("cloud"))


def test_subtasks_follow_one_another() -> None:
    """The next call starts when the answer before it has arrived; its tool runs first."""
    records = run(scenario(EDGE_ONLY), [task(Step(), Step(tool_s=0.5), Step())], always("edge"), [1.0])
    table = rows(records.subtasks)
    assert [(row["position"], row["start_s"], row["end_s"]) for row in table] == [(0, 1, 3), (1, 3, 5.5), (2, 5.5, 7.5)]


def test_two_hops_store_and_forward() -> None:
    """A route over two links takes both in turn: twice 0.6 s up, twice 0.2 s down."""
    world = scenario({"edge": slots(), "cloud": slots("llm")}, links=(HOME_EDGE, link("edge", "cloud")))
    records = run(world, [task()], always("cloud"))
    assert phases(rows(records.subtasks)[0]) == [("uplink_s", 1.2), ("decode_s", 2.0), ("downlink_s", 0.4)]


# ------------------------------------------------------------------------------------------------ tokens on their way back


def test_time_to_first_token_without_streaming() -> None:
    """An answer that comes whole shows its first token when it has arrived."""
    records = run(
        scenario({"cloud": api()}, links=(link("home", "cloud"),)), [task(Step(tool_s=0.3))], always("cloud"), [1.0]
    )
    row, request = rows(records.subtasks)[0], rows(records.requests)[0]
    assert row["ttft_s"] == pytest.approx(0.3 + 0.6 + 2.4 + 0.2)
    assert request["ttft_s"] == pytest.approx(row["ttft_s"])
    assert request["ttft_s"] == pytest.approx(request["latency_s"])


def test_time_to_first_token_with_streaming() -> None:
    """A streamed answer shows it after prefill and the network's delay; only the last token's bytes follow its end."""
    client = {"stream": True, "stream_bytes_per_token": 0.0}
    world = scenario({"cloud": api()}, links=(link("home", "cloud"),), client=client)
    row = rows(run(world, [task()], always("cloud")).subtasks)[0]
    tail_s = 0.1 + 100_000 / 21 / 1e6
    assert row["downlink_s"] == pytest.approx(tail_s)
    assert row["ttft_s"] == pytest.approx(0.6 + 0.4 + tail_s)
    assert row["download_bytes"] == 100_000


def test_streaming_frames_every_token() -> None:
    """The framing of 21 tokens is part of what is downloaded."""
    client = {"stream": True, "stream_bytes_per_token": 180.0}
    world = scenario({"cloud": api()}, links=(link("home", "cloud"),), client=client)
    row = rows(run(world, [task()], always("cloud")).subtasks)[0]
    assert row["download_bytes"] == 100_000 + 21 * 180
    assert row["downlink_s"] == pytest.approx(0.1 + row["download_bytes"] / 21 / 1e6)


def test_a_stream_whose_beginning_nobody_knows_comes_after_service() -> None:
    """A plain queue does not tell when the first token came: the whole answer still has to travel."""
    client = {"stream": True, "stream_bytes_per_token": 0.0}
    row = rows(run(scenario(EDGE_ONLY, links=(HOME_EDGE,), client=client), [task()], always("edge")).subtasks)[0]
    assert phases(row) == [("uplink_s", 0.6), ("decode_s", 2.0), ("downlink_s", 0.2)]


def test_a_slow_link_leaves_a_tail_of_the_stream() -> None:
    """While 2 s of tokens come, 1 MB/s carries 2 MB of a 5 MB answer: 3 MB are left when the last token is generated."""
    client = {"stream": True, "stream_bytes_per_token": 0.0}
    world = scenario({"cloud": api()}, links=(link("home", "cloud"),), client=client)
    row = rows(run(world, [task(Step(download_bytes=5_000_000))], always("cloud")).subtasks)[0]
    assert row["downlink_s"] == pytest.approx(3.1)


def test_the_first_subtask_gives_the_request_its_first_token() -> None:
    """A request's time to first token is its first subtask's, not the last one's."""
    records = run(scenario(EDGE_ONLY), [task(Step(), Step())], always("edge"), [1.0])
    assert rows(records.requests)[0]["ttft_s"] == pytest.approx(2.0)


def test_attachments_go_along_as_placed() -> None:
    """Only the modalities of the placement are uploaded; all of them where it names none."""
    pictures = [Attachment("front", 1_000_000), Attachment("back", 250_000)]
    uploads = []
    for wanted in (None, (), ("back",), ("front", "back")):
        placement = Placement("edge", modalities=wanted)
        world = scenario({"edge": slots(multimodal=True)})
        records = run(world, [task(attachments=pictures)], placing(placement))
        uploads.append(rows(records.subtasks)[0]["upload_bytes"] - 500_000)
    assert uploads == [1_250_000, 0, 250_000, 1_250_000]


# ------------------------------------------------------------------------------------------------------------- timeouts

INTERRUPTED = {
    # timeout: phases of the interrupted attempt
    0.2: [("tool_s", 0.2)],
    0.55: [("tool_s", 0.5), ("decision_s", 0.05)],
    0.8: [("tool_s", 0.5), ("decision_s", 0.1), ("uplink_s", 0.2)],
    1.5: [("tool_s", 0.5), ("decision_s", 0.1), ("uplink_s", 0.6), ("queue_s", 0.3)],
    2.3: [("tool_s", 0.5), ("decision_s", 0.1), ("uplink_s", 0.6), ("queue_s", 1.0), ("prefill_s", 0.1)],
    3.0: [("tool_s", 0.5), ("decision_s", 0.1), ("uplink_s", 0.6), ("queue_s", 1.0), ("prefill_s", 0.4), ("decode_s", 0.4)],
    4.65: [("tool_s", 0.5), ("decision_s", 0.1), ("uplink_s", 0.6), ("queue_s", 1.0), ("prefill_s", 0.4), ("decode_s", 2.0),
           ("downlink_s", 0.05)],
}  # fmt: skip


@pytest.mark.parametrize("timeout_s", INTERRUPTED)
def test_a_timeout_cuts_every_phase_short(timeout_s: float) -> None:
    """The request ends at its timeout, whatever it was doing, and its row says how far it got."""
    world = scenario(
        EDGE_ONLY, links=(HOME_EDGE,), client={"timeout_s": timeout_s, "stream": False},
        inference={"service_time": "measured"},
    )  # fmt: skip
    # The first request's service lasts until 2.2 s, one second after the second's upload has arrived.
    first = task(Step(upload_bytes=0, prefill_s=2.0, decode_s=0.0))
    second = task(Step(tool_s=0.5, prefill_s=0.4, decode_s=2.0))
    records = run(world, [first, second], always("edge", decision_s=0.1))
    interrupted = attempts_of(records, 1)[-1]
    assert phases(interrupted) == INTERRUPTED[timeout_s]
    assert interrupted["status"] == "timeout"
    request = rows(records.requests)[1]
    assert (request["status"], request["reason"], request["score"]) == ("timeout", "timeout", 0.0)
    assert request["latency_s"] == pytest.approx(timeout_s)
    assert math.isnan(request["ttft_s"])


@pytest.mark.parametrize("tier", ["slots", "endpoint", "device"])
def test_a_prefill_cut_short_is_all_prefill(tier: str) -> None:
    """Cut short before its first token, service was prefill and nothing else; a plain queue knows no prefill."""
    kinds = {"slots": slots(), "endpoint": api(ttft_median_s=2.0), "device": device()}
    world = scenario({"edge": kinds[tier]}, client={"timeout_s": 0.5})
    records = run(world, [task(Step(prompt_tokens=2000))], always("edge"))
    assert phases(rows(records.subtasks)[0]) == [("decode_s" if tier == "slots" else "prefill_s", 0.5)]


@pytest.mark.parametrize("tier", ["endpoint", "device"])
def test_a_crash_in_prefill_is_all_prefill(tier: str) -> None:
    """A crash before the first token leaves no decoding time behind."""
    kinds = {"endpoint": api(ttft_median_s=2.0), "device": device()}
    fault = {"target": "edge", "at_s": (0.5,), "duration_s": 9.0}
    world = scenario({"edge": kinds[tier]}, faults=(fault,), client={"retries": 0})
    records = run(world, [task(Step(prompt_tokens=2000))], always("edge"))
    row = rows(records.subtasks)[0]
    assert (row["status"], phases(row)) == ("crashed", [("prefill_s", 0.5)])
    assert rows(records.requests)[0]["status"] == "failed"


def test_an_answer_that_comes_first_beats_the_timeout() -> None:
    """A request that would take exactly its timeout ends once, one way or the other."""
    records = run(scenario(EDGE_ONLY, client={"timeout_s": 2.0}), [task()] * 3, always("edge"), list(spaced(3, 4.0)))
    assert records.requests["latency_s"].tolist() == [2.0, 2.0, 2.0]
    assert set(records.requests["status"].tolist()) <= {"completed", "timeout"}


def test_the_last_tool_call_counts() -> None:
    """A tool that runs after the last answer has a row of its own, on no tier and free of charge."""
    records = run(scenario(EDGE_ONLY), [task(Step(), Step(), last_tool_s=0.7)], always("edge"))
    last = rows(records.subtasks)[-1]
    assert (last["tier"], last["position"], last["status"], phases(last)) == (-1, 2, "ok", [("tool_s", 0.7)])
    assert last["total_usd"] == 0.0
    (request,) = rows(records.requests)
    assert (request["latency_s"], request["subtasks"], request["score"]) == (pytest.approx(4.7), 2, 1.0)


def test_a_timeout_in_the_last_tool_call() -> None:
    """A request timed out in its last tool call has not completed and scores nothing."""
    world = scenario(EDGE_ONLY, client={"timeout_s": 2.5})
    records = run(world, [task(last_tool_s=5.0), task()], always("edge"), [0.0, 10.0])
    assert records.requests["status"].tolist() == ["timeout", "completed"]
    assert records.requests["score"].tolist() == [0.0, 1.0]
    last = attempts_of(records, 0)[-1]
    assert (last["tier"], last["status"], phases(last)) == (-1, "timeout", [("tool_s", 0.5)])


# ------------------------------------------------------------------------------------------------- what a timeout frees

BUSY = {"tool": 0.2, "decision": 0.55, "uplink": 0.8, "queue": 1.5, "service": 2.0, "downlink": 4.75}


@pytest.mark.parametrize("phase", BUSY)
@pytest.mark.parametrize("kind", ["slots", "endpoint", "device"])
def test_a_timeout_frees_link_and_server(phase: str, kind: str) -> None:
    """A request that comes after one was interrupted meets an idle link and an idle server."""
    kinds = {"slots": slots(mean_s=3.0), "endpoint": api(concurrency=1), "device": device(max_batch=1)}
    big = Step(tool_s=0.5, upload_bytes=600_000, download_bytes=9_000_000, output_tokens=26)
    client = {"timeout_s": BUSY[phase], "stream": False}
    later_s = BUSY[phase] + 0.1  # a device finishes the decoding step under way before it lets go
    world = scenario({"edge": kinds[kind]}, links=(HOME_EDGE,), client=client)
    alone = run(world, [task(big)], always("edge", decision_s=0.1), [later_s])
    after = run(world, [task(big), task(big)], always("edge", decision_s=0.1), [0.0, later_s])
    assert rows(after.requests)[0]["status"] == "timeout"
    mine, same = attempts_of(after, 1)[0], attempts_of(alone, 0)[0]
    assert phases(mine) == phases(same)


def test_a_timeout_after_the_last_byte_left_frees_the_link() -> None:
    """An upload cut short while its last byte is under way takes no share from the two that come together after it."""
    world = scenario({"edge": slots(slots=3)}, links=(HOME_EDGE,), client={"timeout_s": 0.55, "stream": False})
    late = [task(Step(upload_bytes=100_000))] * 2
    records = run(world, [task(), *late], always("edge"), [0.0, 1.0, 1.0])
    assert attempts_of(records, 0)[0]["uplink_s"] == pytest.approx(0.55)
    assert records.subtasks["uplink_s"][1:].tolist() == pytest.approx([0.3, 0.3])


# ------------------------------------------------------------------------------------------- retries, fail-over, refusals


def test_an_attempt_timeout_is_retried_and_failed_over() -> None:
    """Two tries of 1 s at a server that takes 2 s, then the other tier; reasons say why."""
    client = {"attempt_timeout_s": 1.0, "retries": 1, "backoff_s": 0.0, "stream": False}
    world = scenario({"edge": slots(), "cloud": slots("llm", 0.5)}, links=(HOME_EDGE,), client=client)
    records = run(world, [task(Step(upload_bytes=100_000))], placing(Placement("edge", "on a whim")))
    table = [(row["attempt"], row["tier"], row["status"], row["reason"], phases(row)) for row in rows(records.subtasks)]
    assert table == [
        (0, 0, "attempt-timeout", "on a whim", [("uplink_s", 0.2), ("decode_s", 0.8)]),
        (1, 0, "attempt-timeout", "on a whim", [("uplink_s", 0.2), ("decode_s", 0.8)]),
        (2, 1, "ok", "fail-over from edge: attempt-timeout", [("decode_s", 0.5)]),
    ]
    (request,) = rows(records.requests)
    assert (request["status"], request["subtasks"], request["slm_subtasks"]) == ("completed", 1, 0)


def test_an_attempt_timeout_can_cut_an_upload_short() -> None:
    """The upload is taken off the link: the retry has all of it to itself."""
    client = {"attempt_timeout_s": 1.0, "retries": 1, "backoff_s": 0.0, "fail_over": False}
    world = scenario(EDGE_ONLY, links=(HOME_EDGE,), client=client)
    records = run(world, [task(Step(upload_bytes=3_000_000))], always("edge"))
    assert [phases(row) for row in rows(records.subtasks)] == [[("uplink_s", 1.0)]] * 2
    assert rows(records.requests)[0]["reason"] == "attempt-timeout at edge after 2 attempts of subtask 0"


def test_backoff_is_outside_the_attempt_timeout() -> None:
    """The pause before a retry is the client's own doing: the attempt's clock starts after it."""
    client = {"attempt_timeout_s": 3.0, "retries": 3, "backoff_s": 50.0, "backoff_max_s": 50.0}
    fault = {"target": "edge", "at_s": (1.0,), "duration_s": 0.5}
    records = run(scenario(EDGE_ONLY, faults=(fault,), client=client), [task()], always("edge"))
    first, second = rows(records.subtasks)
    assert (first["status"], second["status"]) == ("crashed", "ok")
    assert 0.0 < second["backoff_s"] < 50.0


def test_backoff_grows_and_is_capped() -> None:
    """Full jitter: each pause lies between 0 and the doubled bound, never above the cap."""
    client = {"retries": 8, "backoff_s": 1.0, "backoff_max_s": 20.0, "fail_over": False, "timeout_s": 1e6}
    world = scenario(
        {"cloud": api(concurrency=1)}, faults=({"target": "cloud", "at_s": (0.0,), "duration_s": 1e5},), client=client
    )
    records = run(world, [task() for _ in range(200)], always("cloud"))
    pauses = {retry: records.subtasks["backoff_s"][records.subtasks["attempt"] == retry] for retry in range(9)}
    assert not pauses[0].any()
    for retry in range(1, 9):
        bound = min(20.0, 2.0 ** (retry - 1))
        assert 0.9 * bound < pauses[retry].max() < bound
        assert pauses[retry].mean() == pytest.approx(bound / 2, rel=0.15)


def test_many_retries_do_not_overflow() -> None:
    """The doubling stops long before numbers do."""
    client = {"retries": 1100, "backoff_s": 1e-9, "backoff_max_s": 1e-9, "fail_over": False}
    fault = {"target": "edge", "at_s": (0.0,), "duration_s": 900.0}
    records = run(scenario(EDGE_ONLY, faults=(fault,), client=client), [task()], always("edge"))
    assert len(records.subtasks["attempt"]) == 1101


def test_retry_after_is_the_least_pause() -> None:
    """An endpoint that is full for 2 more seconds says so, and the client does not come back earlier."""
    client = {"retries": 1, "backoff_s": 0.0, "stream": False}
    records = run(scenario({"cloud": api(concurrency=1)}, client=client), [task(), task()], always("cloud"), [0.0, 0.4])
    table = [(row["status"], phases(row)) for row in attempts_of(records, 1)]
    served = [("prefill_s", 0.4), ("decode_s", 2.0)]
    assert table == [("rejected", []), ("ok", [("backoff_s", 2.0), *served])]


def test_retry_after_is_respected_once() -> None:
    """After the pause the server asked for, a failure of another kind is retried at the client's own pace."""
    client = {"retries": 2, "backoff_s": 0.0, "attempt_timeout_s": 2.0, "stream": False}
    outage = {"target": "home-cloud", "at_s": (59.0,), "duration_s": 4.0}
    world = scenario({"cloud": api(rpm=1)}, links=(link("home", "cloud"),), faults=(outage,), client=client)
    quick = task(Step(output_tokens=1))
    records = run(world, [quick, quick], always("cloud"), [0.0, 0.4])
    table = [(row["status"], round(row["backoff_s"], 6)) for row in attempts_of(records, 1)]
    assert table == [("rejected", 0.0), ("attempt-timeout", 59.6), ("ok", 0.0)]


def test_an_oversized_call_is_not_retried() -> None:
    """What cannot fit fails over at once, without a pause."""
    world = scenario({"cloud": api(tpm=100), "edge": slots()})
    records = run(world, [task()], always("cloud"))
    assert [(row["status"], row["tier"]) for row in rows(records.subtasks)] == [("oversized", 0), ("ok", 1)]


def test_a_request_that_nobody_serves_fails_once() -> None:
    """Every tier is tried with all retries; then the request fails, names the last failure and scores nothing."""
    faults = tuple({"target": tier, "at_s": (0.0,), "duration_s": 1e4} for tier in ("edge", "cloud"))
    world = scenario({"edge": slots(), "cloud": api()}, faults=faults, client={"retries": 2, "backoff_s": 0.1})
    records = run(world, [task(Step(), Step())] * 5, always("edge"))
    assert len(records.requests["request"]) == 5
    for request in rows(records.requests):
        assert request["status"] == "failed"
        assert request["reason"] == "unavailable at cloud after 6 attempts of subtask 0"
        assert [(row["attempt"], row["tier"]) for row in attempts_of(records, request["request"])] == [
            (0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)
        ]  # fmt: skip


def test_without_fail_over_one_tier_is_tried() -> None:
    """A client that may not fail over gives up where it was sent."""
    fault = {"target": "edge", "at_s": (0.0,), "duration_s": 1e4}
    client = {"retries": 1, "backoff_s": 0.0, "fail_over": False}
    records = run(scenario({"edge": slots(), "cloud": api()}, faults=(fault,), client=client), [task()], always("edge"))
    assert records.subtasks["tier"].tolist() == [0, 0]
