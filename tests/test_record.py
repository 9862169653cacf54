"""Recording a scenario: policies or every placement, interrupted or not, and what comes of it on replay."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from sim.cells import expand_cells, run_cell
from sim.loading import LoadedScenario
from sim.recording_progress import estimate
from sim.recording_run import RecordingSummary, record
from tests.conftest import ROOT
from tests.helpers import load_text, rows
from tests.recording_process import SCENARIO, SlowBackend, made_up
from workloads.backend import Handle, ScriptedBackend
from workloads.errors import InputError, IsthmusError, ModelUnavailable
from workloads.recording import read_recording
from workloads.recording_journal import journal_path
from workloads.task import Completion, ModelCall

MODELS = ScriptedBackend(made_up)
SOME = ["workload.tasks.distinct_tasks=14", "workload.requests=14"]
FEW = ["workload.tasks.distinct_tasks=6", "workload.requests=6"]


def scenario(folder: Path, *settings: str) -> LoadedScenario:
    """The scenario of these tests with some of its fields changed."""
    return load_text(folder, SCENARIO, settings)


def left(folder: Path) -> list[str]:
    """Files beside the scenario."""
    return sorted(path.name for path in folder.iterdir() if path.name != "scenario.yaml")


def replaying(folder: Path, name: str, *settings: str) -> LoadedScenario:
    """The same scenario answered by a recording in its folder."""
    return scenario(folder, "inference.backend=replay", f"inference.recording={name}", *settings)


# --------------------------------------------------------------------------------------------------- what comes of it


def test_what_the_policies_asked_is_replayed_as_it_was(tmp_path: Path) -> None:
    """A plain recording: simulating the same policies on it gives the records of the live run, row by row."""
    loaded = scenario(tmp_path, *FEW)
    summary = record(loaded, MODELS, tmp_path / "r.jsonl.gz")
    again = expand_cells(replaying(tmp_path, "r.jsonl.gz", *FEW))
    for live, replay in zip(expand_cells(loaded), again, strict=True):
        first, second = run_cell(live, live=MODELS), run_cell(replay)
        assert without_provenance(first.requests) == without_provenance(second.requests)
        assert without_provenance(first.subtasks) == without_provenance(second.subtasks)
        assert set(second.requests["provenance"]) == {"exact"}
    assert set(summary.accuracy) == {"little", "large"}  # all-slm and all-llm are among the policies
    assert left(tmp_path) == ["r.jsonl.gz"]


def without_provenance(table: object) -> list[dict[str, str]]:
    """Rows in a form in which NaN equals NaN; what was live is exact in replay."""
    return [{k: repr(v) for k, v in row.items() if k != "provenance"} for row in rows(table)]  # type: ignore[arg-type]


def test_every_placement_can_be_replayed(tmp_path: Path) -> None:
    """A counterfactual recording answers policies, seeds and oracles that were not there when it was made."""
    summary = record(scenario(tmp_path, *FEW), MODELS, tmp_path / "r.jsonl", 15)
    others = replaying(
        tmp_path, "r.jsonl", *FEW, "seeds=[7, 8, 9]", "policies=[all-slm, all-llm, {policy: random, p: [0.2, 0.7]}, oracle-cost]"
    )  # fmt: skip
    for cell in expand_cells(others):
        records = run_cell(cell)
        assert set(records.requests["provenance"]) == {"exact"}
        if cell.policy.policy in ("all-slm", "all-llm"):
            model = "little" if cell.policy.policy == "all-slm" else "large"
            assert records.requests["score"].mean() == pytest.approx(summary.accuracy[model])


def test_the_recording_says_how_it_was_made(tmp_path: Path) -> None:
    """Models, tasks, depth and version; no folder, host or time of this machine."""
    settings = [
        *FEW,
        f"tiers.edge.serve.source={tmp_path}/weights/tiny",
        "tiers.cloud.serve.upstream.base_url=http://10.1.2.3/v1",
    ]
    settings += ["tiers.cloud.serve.upstream.model=big-1", "tiers.cloud.serve.source=null"]
    loaded = scenario(tmp_path, *settings)
    record(loaded, MODELS, tmp_path / "r.jsonl", 3, fingerprints={"little": "sha256:77"})
    made = read_recording(tmp_path / "r.jsonl").made
    assert made["depth"] == 3
    assert made["tasks"]["kind"] == "pair"
    assert made["behind"]["little"] == {"source": "tiny", "max_tokens": 256, "fingerprint": "sha256:77"}
    assert made["behind"]["large"] == {"upstream": "big-1", "max_tokens": 256}
    head = (tmp_path / "r.jsonl").read_text().splitlines()[0]
    assert "10.1.2.3" not in head
    assert str(tmp_path) not in head


def test_recording_twice_makes_the_same_file(tmp_path: Path) -> None:
    """Seconds measured and tokens found in caches differ from run to run, so they are left out unless asked for."""

    def moody(call: ModelCall, model: str) -> Completion:
        now = time.perf_counter()
        return made_up(call, model)._replace(prefill_s=now, decode_s=now, cached_tokens=int(now * 1e6) % 100)

    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        record(scenario(tmp_path, *FEW), ScriptedBackend(moody), tmp_path / name, 2)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert not answers(tmp_path / "a.jsonl.gz")[0].decode_s > 0
    record(scenario(tmp_path, *FEW), MODELS, tmp_path / "timed.jsonl.gz", 2, timings=True)
    assert all(answer.decode_s > 0 for answer in answers(tmp_path / "timed.jsonl.gz"))


def answers(path: Path) -> list[Completion]:
    """All answers of a recording."""
    return list(read_recording(path).answers.values())


def test_a_part_of_the_tasks_can_be_recorded(tmp_path: Path) -> None:
    """The first so many of them."""
    summary = record(scenario(tmp_path, *FEW), MODELS, tmp_path / "r.jsonl", 2, 4)
    recording = read_recording(tmp_path / "r.jsonl")
    assert (summary.tasks, len(recording.tasks), recording.made["first_tasks"]) == (4, 4, 4)


# ------------------------------------------------------------------------------------------------------- interruptions


def started(folder: Path, out: Path, depth: int) -> subprocess.Popen[bytes]:
    """A process that records, taking 5 ms for every answer."""
    command = [
        sys.executable,
        "-m",
        "tests.recording_process",
        str(folder / "scenario.yaml"),
        str(out),
        str(depth),
        "0.005",
        *SOME,
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.timeout(900)  # three processes one after another, on machines that may be busy
@pytest.mark.parametrize(("depth", "signals"), [(6, (signal.SIGKILL, signal.SIGINT)), (0, (signal.SIGKILL,))])
def test_an_interrupted_recording_goes_on_to_the_same_bytes(
    depth: int, signals: tuple[int, ...], tmp_path: Path
) -> None:
    """After `kill -9` (and Ctrl-C) in mid-recording, the same command asks only what is missing and ends with the same file.

    The partial file that the killed process left is gone in the end, and so is the journal.
    """
    loaded = scenario(tmp_path, *SOME)
    out = tmp_path / "r.jsonl.gz"
    whole = record(loaded, MODELS, tmp_path / "whole.jsonl.gz", depth or None)
    kept = 0
    for number in signals:
        run = started(tmp_path, out, depth)
        wait_for_lines(journal_path(out), kept + 20, run)
        os.kill(run.pid, number)
        run.communicate(timeout=60)
        assert run.returncode != 0
        assert not out.exists()
        kept = lines_in(journal_path(out)) - 1
        assert 20 <= kept < whole.answers
    with journal_path(out).open("ab") as journal:
        journal.write(b'{"key":"00')  # what a kill in the middle of a line leaves
    run = started(tmp_path, out, depth)
    told, _ = run.communicate(timeout=240)
    assert run.returncode == 0
    assert [int(number) for number in told.split()] == [whole.answers, kept, whole.answers - kept]
    assert out.read_bytes() == (tmp_path / "whole.jsonl.gz").read_bytes()
    assert left(tmp_path) == ["r.jsonl.gz", "whole.jsonl.gz"]


def wait_for_lines(path: Path, count: int, run: subprocess.Popen[bytes], within_s: float = 240.0) -> None:
    """Until a file has more than so many lines."""
    end_s = time.monotonic() + within_s
    while lines_in(path) <= count:
        assert time.monotonic() < end_s, "nothing is recorded"
        assert run.poll() is None, run.communicate()[1].decode()[-2000:]
        time.sleep(0.02)


def lines_in(path: Path) -> int:
    """Whole lines of a file, 0 where there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


class Unreliable(SlowBackend):
    """Serves so many calls and refuses the rest."""

    def __init__(self, served: int) -> None:
        super().__init__(made_up, 0.0)
        self._served = served

    def submit(self, call: ModelCall, model: str) -> Handle:
        """An answer, while there are any."""
        if self.asked >= self._served:
            raise ModelUnavailable("refused", "the key is not accepted")
        return super().submit(call, model)


@pytest.mark.parametrize("depth", [4, None])
def test_a_model_that_fails_for_good_stops_it_and_what_is_done_is_kept(depth: int | None, tmp_path: Path) -> None:
    """One message that says which call, why, and where the answers are; a model that works again finishes the job."""
    loaded, out = scenario(tmp_path, *FEW), tmp_path / "r.jsonl"
    with pytest.raises(
        IsthmusError, match=r"'\w+' failed on subtask \d of task .*: refused: the key is not accepted\. "
    ) as caught:
        record(loaded, Unreliable(15), out, depth)
    assert f"15 answers are kept in {journal_path(out)}; the same command goes on from there" in str(caught.value)
    assert not isinstance(caught.value, InputError)
    backend = Unreliable(10_000)
    summary = record(loaded, backend, out, depth)
    assert (summary.kept, backend.asked) == (15, summary.answers - 15)
    record(loaded, MODELS, tmp_path / "whole.jsonl", depth)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_deeper_recording_goes_on_with_the_answers_of_a_shallower_one(tmp_path: Path) -> None:
    """The depth is no property of answers; the models behind the names are."""
    out = tmp_path / "r.jsonl"
    with pytest.raises(IsthmusError):
        record(scenario(tmp_path, *FEW), Unreliable(15), out, 2)
    with pytest.raises(
        InputError,
        match=r"keeps the answers of another recording: its 'behind\.little\.source' is \"pair/slm\", now it is",
    ):
        record(scenario(tmp_path, *FEW, "tiers.edge.serve.source=other/model"), MODELS, out, 3)
    assert record(scenario(tmp_path, *FEW), MODELS, out, 3).kept == 15


# ------------------------------------------------------------------------------------------------------- what is refused


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    """Answers may have cost money."""
    (tmp_path / "r.jsonl").write_text("precious")
    with pytest.raises(InputError, match="is there already"):
        record(scenario(tmp_path), MODELS, tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_text() == "precious"
    assert left(tmp_path) == ["r.jsonl"]


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ("", {"counterfactual_depth": 16}, "--counterfactual: found 16. Allowed: 1 to 15"),
        ("", {"counterfactual_depth": 0}, "--counterfactual: found 0"),
        ("", {"counterfactual_depth": 2, "tasks_limit": 0}, "--tasks: found 0"),
        ("", {"tasks_limit": 5}, "workload.requests"),
        ("inference.service_time=measured", {}, "Record with --timings"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: str, options: dict[str, int], says: str, tmp_path: Path) -> None:
    """One message with place and remedy, and no file."""
    with pytest.raises(InputError, match=re.escape(says)):
        record(scenario(tmp_path, *filter(None, [change])), MODELS, tmp_path / "r.jsonl", **options)  # type: ignore[arg-type]
    assert left(tmp_path) == []


def test_tasks_with_answers_of_their_own_are_refused(tmp_path: Path) -> None:
    """Modelled tasks have nothing to record."""
    loaded = scenario(tmp_path, "workload.tasks={kind: modelled}", "inference.backend=replay")
    with pytest.raises(
        InputError, match=r"tasks of kind 'modelled' bring their own answers. Only these .*: pair, branching, gsm8k"
    ):
        record(loaded, MODELS, tmp_path / "r.jsonl", 3)


def endless(call: ModelCall, model: str) -> Completion:
    """Models that never finish and never agree."""
    return made_up(call, model)._replace(text=f"find {model} {len(call.messages)}")


def test_what_is_absurd_is_refused_after_a_few_tasks(tmp_path: Path) -> None:
    """12 subtasks of two models that never agree: the estimate refuses 30 tasks long before the limit; fewer levels go."""
    backend = SlowBackend(endless, 0.0)
    with pytest.raises(InputError) as caught:
        record(scenario(tmp_path), backend, tmp_path / "r.jsonl", 12, max_answers=1_000)
    assert "--max-answers 1000: 24 of the 30 tasks alone need more than 800 answers, so that all would" in str(
        caught.value
    )
    assert backend.asked <= 800
    record(scenario(tmp_path), MODELS, tmp_path / "r.jsonl", 2, max_answers=1_000)


def test_the_limit_holds_for_few_tasks_too(tmp_path: Path) -> None:
    """Where there is nothing to estimate, the number of answers itself is watched."""
    with pytest.raises(InputError, match=r"--max-answers 500: task 'hops-\w+' brings the expansion beyond 500 answers"):
        record(scenario(tmp_path, *FEW), ScriptedBackend(endless), tmp_path / "r.jsonl", 12, max_answers=500)


# ------------------------------------------------------------------------------------------------------------- secrets


class Secretive(ScriptedBackend):
    """A backend full of secrets: its own, its handles' and its answers'."""

    api_key = "sk-very-secret"

    def submit(self, call: ModelCall, model: str) -> Handle:
        """An answer with headers attached."""
        handle = _SecretHandle(*made_up(call, model))
        handle.headers = {"authorization": f"Bearer {self.api_key}"}
        return handle


class _SecretHandle(Completion):
    headers: dict[str, str]
    request_id = "sk-very-secret"


@pytest.mark.parametrize("depth", [2, None])
def test_no_secret_reaches_the_recording_or_its_journal(depth: int | None, tmp_path: Path) -> None:
    """Nothing but the named fields of answers and tasks is written, at any moment."""
    loaded = scenario(tmp_path, *FEW, "tiers.cloud.serve.source=null", "tiers.cloud.serve.upstream.model=big-1",
                      "tiers.cloud.serve.upstream.base_url=https://user:very-secret@host/v1?key=very-secret",
                      "tiers.cloud.serve.upstream.api_key_env=VERY_SECRET_NAME")  # fmt: skip
    seen: list[str] = []

    class Watching(Secretive):
        def submit(self, call: ModelCall, model: str) -> Handle:
            seen.append(journal_path(tmp_path / "r.jsonl").read_text())
            return super().submit(call, model)

    record(loaded, Watching(made_up), tmp_path / "r.jsonl", depth)
    assert len(seen[-1]) > 1000
    for text in (*seen, (tmp_path / "r.jsonl").read_text()):
        assert not re.search("very.secret", text.lower())  # the word alone is one of the tasks' own


# ------------------------------------------------------------------------------------------------------------ progress


def shown(loaded: LoadedScenario, out: Path, depth: int | None = None) -> tuple[RecordingSummary, str]:
    """A recording, and what a wide terminal shows of it in the end."""
    text = io.StringIO()
    summary = record(loaded, MODELS, out, depth, console=Console(file=text, width=200, force_terminal=False))
    return summary, text.getvalue()


def test_the_size_is_told_before_it_goes_on(tmp_path: Path) -> None:
    """After a few tasks an estimate of all answers and bytes, which the truth then bears out; in the end what was done."""
    summary, text = shown(scenario(tmp_path), tmp_path / "r.jsonl.gz", 4)
    found = re.search(
        r"Expected: about ([\d,]+) answers \(95 % sure: ([\d,]+) to ([\d,]+)\), (\d+) kB compressed\.", text
    )
    assert found is not None
    about, low, high, kilobytes = (int(number.replace(",", "")) for number in found.groups())
    assert low <= about <= high
    assert 0.5 * about < summary.answers < 2 * about
    assert 0.3 * kilobytes < summary.bytes / 1000 < 2 * kilobytes
    assert f"{summary.answers:,} answers · 30 of 30 tasks" in text


def test_the_estimate_is_as_sure_as_it_can_be() -> None:
    """By hand: mean 12 of three tasks; its half width is t(2) s / sqrt(3) with the correction for 3 of 12 tasks known."""
    expected = estimate([10, 12, 14], 12)
    half = 4.302653 * 2 / 3**0.5 * (1 - 3 / 12) ** 0.5
    assert expected.answers == 144
    assert expected.high == pytest.approx(12 * (12 + half), rel=1e-5)
    assert expected.low == pytest.approx(12 * (12 - half), rel=1e-5)
    whole = estimate([10, 12, 14], 3)
    assert (whole.low, whole.answers, whole.high) == (36, 36, 36)


def test_a_policy_that_asks_everything_asks_many_at_a_time(tmp_path: Path) -> None:
    """An oracle among the policies has every placement answered, and most of what is asked travels in batches, each call once."""
    batches: list[int] = []

    class Batching(SlowBackend):
        def submit_many(self, calls: Sequence[tuple[ModelCall, str]]) -> list[Handle]:
            batches.append(len(calls))
            return [self.submit(call, model) for call, model in calls]

    loaded = scenario(tmp_path, *FEW, "policies=[all-slm, oracle-cost]", "seeds=[1]")
    backend = Batching(made_up, 0.0)
    summary = record(loaded, backend, tmp_path / "r.jsonl")
    assert backend.asked == summary.answers
    record(scenario(tmp_path, *FEW), MODELS, tmp_path / "every.jsonl", 15)
    assert (
        read_recording(tmp_path / "r.jsonl").answers.keys() == read_recording(tmp_path / "every.jsonl").answers.keys()
    )
    assert sum(batches) > 0.6 * summary.answers
