"""The status of a run."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from results.speed import Speed
from results.status import RunStatus, describe, read_status, write_status

RUNNING = RunStatus(
    state="running",
    reason=None,
    model="models/tiny",
    original_length=256,
    target_length=1024,
    phase="generation 3 of 40",
    num_candidates=25,
    total_candidates=300,
    num_documents=250,
    total_documents=4000,
    best_perplexity=6.25,
    best_method="longrope2-search",
    documents_per_second=3.21,
    utilisation=0.974,
    num_workers=8,
    num_retries=1,
    num_failed=2,
    seconds=3725.0,
    seconds_left=90.4,
    updated="2026-11-21T10:00:00+00:00",
)
UNKNOWN = replace(
    RUNNING,
    best_perplexity=math.nan,
    best_method=None,
    documents_per_second=math.nan,
    utilisation=math.nan,
    seconds_left=math.nan,
    total_documents=0,
)


def test_a_running_run_is_told_line_by_line() -> None:
    assert describe(RUNNING, alive=True, path="runs/one").splitlines() == [
        "run         runs/one",
        "state       running, generation 3 of 40",
        "model       models/tiny, 256 to 1024 tokens",
        "candidates  25 of 300",
        "documents   250 of 4000 (6.2%), 2 failed",
        "best        perplexity 6.2500, longrope2-search",
        "speed       3.21 documents/s, workers busy 97% of the time",
        "workers     8 workers, 1 retry",
        "time        1 h 02 min, about 1 min 30 s left",
        "updated     2026-11-21T10:00:00+00:00",
    ]


def test_what_is_not_known_is_not_told() -> None:
    told = describe(UNKNOWN, alive=True, path="runs/one")
    assert "nan" not in told
    assert "best        none yet" in told
    assert "speed" not in told
    assert "time        1 h 02 min\n" in told
    assert "documents   250, 2 failed" in told


def test_what_the_workers_compute_is_told_where_it_is_known() -> None:
    computed = Speed(device="a GPU", document_flops=6.1e15, flops_per_second=5e14, ceiling=8e14, peak_bytes=40 * 10**9)
    lines = describe(replace(RUNNING, speed=computed), alive=True, path="runs/one").splitlines()
    assert lines[6:10] == [
        "speed       3.21 documents/s, workers busy 97% of the time",
        "computing   6.1 PFLOP per document, 500 TFLOP/s per worker, 62% of a plain matmul (800 TFLOP/s on a GPU)",
        "memory      40 GB at most in a worker",
        "workers     8 workers, 1 retry",
    ]


def test_a_status_of_version_1_says_nothing_of_what_was_computed() -> None:
    document = json.loads(RUNNING.to_json())
    del document["speed"]
    assert RunStatus.from_json(json.dumps({**document, "schema_version": 1})) == RUNNING


def test_a_running_run_without_a_driver_was_killed_and_can_be_resumed() -> None:
    lines = describe(RUNNING, alive=False, path="runs/one").splitlines()
    assert lines[1] == "state       killed, generation 3 of 40: no driver works on it any more"
    assert lines[8] == "time        1 h 02 min"
    assert lines[-1] == "resume with: ropewalk search --resume --run-dir runs/one"


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_run_that_ended_early_says_why_and_how_to_go_on(state: str) -> None:
    status = replace(RUNNING, state=state, reason="the disk is full")  # type: ignore[arg-type]
    lines = describe(status, alive=False, path="runs/my run").splitlines()
    assert lines[1] == f"state       {state}: the disk is full"
    assert lines[-1] == "resume with: ropewalk search --resume --run-dir 'runs/my run'"
    taken_up = describe(status, alive=True, path="runs/one").splitlines()
    assert taken_up[1] == f"state       being taken up again, was {state}: the disk is full"
    assert taken_up[-1].startswith("updated")


def test_the_line_that_resumes_takes_what_its_caller_knows_besides() -> None:
    told = describe(RUNNING, alive=False, path="runs/one", extra="--storage postgresql://me@host/studies")
    assert told.splitlines()[-1] == (
        "resume with: ropewalk search --resume --run-dir runs/one --storage postgresql://me@host/studies"
    )
    assert "--storage" not in describe(RUNNING, alive=True, path="runs/one", extra="--storage sqlite:///s.db")


@pytest.mark.parametrize("alive", [True, False])
def test_a_finished_run_needs_nothing_more(alive: bool) -> None:
    lines = describe(replace(RUNNING, state="finished"), alive=alive, path="runs/one").splitlines()
    assert lines[1] == "state       finished"
    assert lines[-1].startswith("updated")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (3599.9, "1 h 00 min"), (360_000.0, "100 h 00 min"), (math.nan, "unknown")],
)
def test_times_are_rounded_to_what_a_reader_needs(seconds: float, told: str) -> None:
    assert f"time        {told}\n" in describe(replace(UNKNOWN, seconds=seconds), alive=True, path="run")


def test_a_status_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    write_status(tmp_path, replace(RUNNING, state="failed", reason="λ"))
    written = replace(RUNNING, speed=Speed(flops_per_second=5e14, peak_bytes=3))
    write_status(tmp_path, written)
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert read_status(tmp_path) == written


def test_json_has_null_for_what_is_no_finite_number_and_gives_nan_back() -> None:
    text = replace(UNKNOWN, seconds=math.inf).to_json()
    document = json.loads(text)
    assert document == {
        **{key: None if value != value else value for key, value in asdict(UNKNOWN).items()},
        "seconds": None,
        "speed": Speed().to_record(),
        "schema_version": 2,
    }
    assert repr(RunStatus.from_json(text)) == repr(replace(UNKNOWN, seconds=math.nan))


def test_a_whole_number_of_seconds_is_a_number_too() -> None:
    document = {**json.loads(RUNNING.to_json()), "seconds": 3725}
    assert RunStatus.from_json(json.dumps(document)) == RUNNING


def test_a_state_that_nobody_knows_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^a status must have a state of running, stopped, failed, finished, got 'lost'$"
    ):
        replace(RUNNING, state="lost")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "{", "not json"])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a status must be JSON, got something else: .*\. Was the file cut\?$"):
        RunStatus.from_json(text)


@pytest.mark.parametrize(("text", "found"), [("[]", "None"), ("{}", "None"), ('{"schema_version": 3}', "3")])
def test_another_schema_version_is_refused(text: str, found: str) -> None:
    with pytest.raises(ValueError, match=rf"^a status must have schema version 1 or 2, got {found}\. .*$"):
        RunStatus.from_json(text)


def test_other_keys_are_refused() -> None:
    document = json.loads(RUNNING.to_json())
    del document["phase"], document["model"]
    with pytest.raises(
        ValueError,
        match=r"^a status must have the keys that Ropewalk writes, got one that lacks model, phase and has colour "
        r"besides\. Was the file edited\?$",
    ):
        RunStatus.from_json(json.dumps({**document, "colour": "red"}))
    with pytest.raises(ValueError, match=r"got one that lacks none and has colour besides\. "):
        RunStatus.from_json(json.dumps({**json.loads(RUNNING.to_json()), "colour": "red"}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("seconds", "3"), ("num_workers", 1.5), ("num_workers", True), ("model", None), ("reason", 3), ("seconds", True)],
)
def test_values_of_another_kind_are_refused(name: str, value: object) -> None:
    document = {**json.loads(RUNNING.to_json()), name: value}
    with pytest.raises(ValueError, match=rf"^a status must have another kind of value as its {name}, got {value!r}\. "):
        RunStatus.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^run directory .*run must have a status\.json, got: No such file or directory\. Give the folder of "),
        (b"\xff", r"^run directory .*run must have a status\.json, got: no text\. Give the folder of "),
        (b"{", r"^.*status\.json: a status must be JSON, got something else: "),
    ],
)
def test_a_folder_without_a_status_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if content is not None:
        (run / "status.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_status(run)
