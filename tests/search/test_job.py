"""The real command on the reference model, end to end: what it leaves, what it prints, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import ray
import torch
from optuna.storages.journal import JournalFileBackend, JournalStorage
from transformers import AutoConfig, AutoModelForCausalLM

from results.run_lock import LOCK, RunLock
from results.status import read_status, write_status
from results.store import read_measurements
from results.summary import Summary
from rope.factors import load_factors
from rope.frequencies import rescaled_inverse_frequencies
from search.cli import main
from search.journal import JOURNAL
from tests.search.running import HAYSTACK, MODEL, ROOT, TINY, interrupt_after

SMALL = [
    *TINY,
    "--algorithm=longrope2",
    "--evolution.population-size=10",
    "--evolution.num-generations=2",
    "--evolution.num-parents=4",
    "--evolution.num-mutations=3",
    "--evolution.num-crossovers=3",
]


def search(run_dir: Path, *options: str, model: str = MODEL, corpus: str = HAYSTACK, target: int = 512) -> int:
    base = ["search", f"--model={model}", f"--corpus={corpus}", f"--target-length={target}", "--dtype=float32"]
    return main([*base, f"--run-dir={run_dir}", *SMALL, *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    assert search(run_dir) == 0
    return run_dir


def test_a_run_leaves_everything_that_its_user_needs(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.yaml",
        "factors.json",
        "config_fragment.json",
        "summary.json",
        "provenance.json",
        "measurements",
        "status.json",
        JOURNAL,
    }
    assert [path.suffix for path in (finished / "measurements").iterdir()].count(".jsonl") == 0


def test_the_summary_has_every_method_and_the_winner_is_what_validation_picked_or_a_formula(finished: Path) -> None:
    found = json.loads((finished / "summary.json").read_text())
    assert {"seed", "num_document_forwards", "seconds", "winner", "methods"} <= found.keys()
    names = [(method["name"], method["kind"]) for method in found["methods"]]
    assert {("none", "formula"), ("yarn", "formula"), ("longrope2", "formula"), ("longrope2-search", "searched")} <= {
        *names
    }
    searched = [method for method in found["methods"] if method["kind"] == "searched"]
    picked = [method for method in searched if method["is_picked"]]
    able = picked + [method for method in found["methods"] if method["kind"] == "formula"]
    assert len(picked) == 1
    assert min(able, key=lambda method: method["heldout_perplexity"])["name"] == found["winner"]
    validated = [method for method in searched if method["validation_perplexity"] is not None]
    assert min(validated, key=lambda method: method["validation_perplexity"]) == picked[0]


def test_every_measurement_is_stored_and_counted(finished: Path) -> None:
    summary = Summary.from_json((finished / "summary.json").read_text())
    measurements = read_measurements(finished)
    assert len(measurements) == summary.num_document_forwards
    assert (measurements["split"] == "search").sum() == summary.num_search_forwards
    assert not measurements.duplicated(["candidate", "document"]).any()
    assert measurements["failure"].isna().all()


def test_summary_and_status_say_what_was_computed_and_in_how_much_memory(finished: Path) -> None:
    speed = Summary.from_json((finished / "summary.json").read_text()).speed
    assert None not in speed.to_record().values()
    assert read_status(finished).speed == speed
    long = read_measurements(finished).query("split != 'original'")
    assert speed.document_flops == long["flops"].max()
    assert speed.peak_bytes == long["peak_bytes"].max()


def test_the_study_names_formulas_and_origins(finished: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(finished / JOURNAL)))
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert all(trial.state.is_finished() for trial in trials)
    assert [trial.user_attrs["method"] for trial in trials[:2]] == ["none", "none"]
    searched = [trial for trial in trials if "generation" in trial.user_attrs]
    assert len(searched) == 10 + 2 * 6
    assert {"initial", "mutation"} <= {trial.user_attrs["operator"] for trial in searched}


def test_plain_transformers_loads_the_fragment_and_rotates_as_the_factors_say(finished: Path, tmp_path: Path) -> None:
    factors = load_factors(finished / "factors.json")
    config = json.loads((ROOT / "workers/reference/model/config.json").read_text())
    config.update(json.loads((finished / "config_fragment.json").read_text()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))  # type: ignore[no-untyped-call]
    rotary = model.model.rotary_emb
    rotary(torch.zeros(1, 1), torch.arange(factors.original_length + 1)[None])  # transformers switches by itself
    expected = torch.tensor(rescaled_inverse_frequencies(factors), dtype=torch.float32)
    torch.testing.assert_close(rotary.inv_freq, expected, rtol=1e-6, atol=0)  # float32 against float64 powers
    assert rotary.attention_scaling == pytest.approx(factors.attention_temperature)


def test_the_run_directory_says_what_every_document_was(finished: Path) -> None:
    documents = json.loads((finished / "documents.json").read_text())
    assert len(documents) == 6 + 6 + 4 + 4
    assert {document["id"] for document in documents} == set(read_measurements(finished)["document"])
    assert all(len(document["sha256"]) == len(document["passage_sha256"]) == 64 for document in documents)
    assert len({document["needles"][0]["value"] for document in documents}) == len(documents)


def test_formulas_are_measured_at_the_temperature_that_the_search_found_too(tmp_path: Path) -> None:
    assert search(tmp_path / "run", "--space.attention-temperature=1.3") == 0
    summary = Summary.from_json((tmp_path / "run" / "summary.json").read_text())
    names = {method.name for method in summary.methods if method.kind == "formula"}
    assert names == {"none", "yarn", "longrope2"}
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "run" / JOURNAL)))
    trials = optuna.load_study(study_name=None, storage=storage).trials
    formulas = [trial for trial in trials if trial.user_attrs["method"] in names]
    assert {
        trial.user_attrs["method"] for trial in formulas if trial.user_attrs["attention_temperature"] == 1.3
    } == names


@pytest.fixture
def interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run that was interrupted after twenty documents."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_after(20, monkeypatch)
        assert search(tmp_path / "run") == 2
    assert f"resume with: ropewalk search --resume --run-dir {tmp_path / 'run'}" in capsys.readouterr().out
    return tmp_path / "run"


def test_a_run_that_is_interrupted_keeps_every_document_that_was_measured(interrupted: Path) -> None:
    assert len(read_measurements(interrupted)) == 20
    assert read_status(interrupted).state == "stopped"
    assert not (interrupted / "factors.json").exists()


@pytest.mark.parametrize("how", ["the same command", "--resume", "--resume and the run directory alone"])
def test_an_interrupted_run_is_taken_up_and_ends_as_an_undisturbed_one(
    finished: Path, interrupted: Path, how: str
) -> None:
    before = read_measurements(interrupted)
    if how == "--resume and the run directory alone":
        assert main(["search", "--resume", f"--run-dir={interrupted}"]) == 0
    else:
        assert search(interrupted, *(["--resume"] if how == "--resume" else [])) == 0
    one, two = (Summary.from_json((path / "summary.json").read_text()) for path in (finished, interrupted))
    assert two.methods == one.methods
    assert two.num_document_forwards == one.num_document_forwards
    assert two.num_search_forwards == one.num_search_forwards
    after = read_measurements(interrupted)
    assert not after.duplicated(["candidate", "document"]).any()
    assert after.head(len(before)).equals(before)
    mine, theirs = (load_factors(path / "factors.json") for path in (interrupted, finished))
    assert mine.values == theirs.values
    assert read_status(interrupted).state == "finished"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 160 KiB, which is full within a run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_run_that_fills_its_disk_ends_with_one_line_and_goes_on_when_there_is_room(
    finished: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_disk / "run"
    (small_disk / "ballast").write_bytes(bytes(60_000))
    assert search(run) == 2
    output, errors = capsys.readouterr()
    last = [line for line in errors.splitlines() if line.startswith("ropewalk: error: ")]
    assert len(last) == 1
    assert "must have room, got: No space left on device. Free some and take the run up with --resume" in last[0]
    assert f"resume with: ropewalk search --resume --run-dir {run}" in output
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert search(run) == 0
    one, two = (Summary.from_json((path / "summary.json").read_text()) for path in (finished, run))
    assert two.methods == one.methods
    assert not read_measurements(run).duplicated(["candidate", "document"]).any()


def test_a_run_is_not_taken_up_with_another_configuration_or_corpus(
    interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(interrupted, "--seed=3") == 2
    assert "a resumed run must keep its configuration, got another value of seed than" in capsys.readouterr().err
    copy = tmp_path / "book.txt"
    copy.write_text(Path(HAYSTACK).read_text())
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_after(3, monkeypatch)
        assert search(tmp_path / "second", corpus=str(copy)) == 2
    copy.write_text(Path(HAYSTACK).read_text().replace("whitewash", "limewash"))
    capsys.readouterr()
    assert search(tmp_path / "second", corpus=str(copy)) == 2
    assert "a resumed run must have the documents that it began with, got others for" in capsys.readouterr().err


def test_a_run_that_another_driver_works_on_is_refused(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(interrupted):
        assert search(interrupted) == 2
        assert main(["status", str(interrupted)]) == 0
    _, errors = capsys.readouterr()
    assert f"run directory {interrupted} must have one driver, got a second while pid {os.getpid()}" in errors
    assert len(read_measurements(interrupted)) == 20


def test_where_there_is_nothing_to_resume_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(tmp_path / "none", "--resume") == 2
    assert "none must hold a run to resume, got none" in capsys.readouterr().err
    assert main(["search", "--resume"]) == 2
    assert "--resume must go with --run-dir" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_shown_when_it_is_resumed_and_refused_when_it_is_started_again(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.*") if path.name != LOCK}
    assert main(["search", "--resume", f"--run-dir={finished}"]) == 0
    assert str(finished) in capsys.readouterr().out
    assert search(finished) == 2
    assert "got one that already holds a finished run" in capsys.readouterr().err
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*.*") if path.name != LOCK}
    assert after == before


def test_the_status_of_a_run_is_told(
    finished: Path, interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(finished)]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["status", str(interrupted)]) == 0
    told = capsys.readouterr().out
    assert "stopped: stopped by its user" in told
    assert f"resume with: ropewalk search --resume --run-dir {interrupted}" in told
    assert main(["status", str(tmp_path)]) == 2
    assert "must have a status.json" in capsys.readouterr().err


def test_the_steady_schedule_finds_factors_too_and_repeats_itself_in_one_process(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert search(tmp_path / name, "--schedule=steady") == 0
    one, two = (Summary.from_json((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert one.methods == two.methods


def test_all_files_of_a_run_are_copied_where_its_user_wants_them(tmp_path: Path) -> None:
    assert search(tmp_path / "run", f"--mirror=file://{tmp_path / 'copy'}") == 0
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and path.name != "driver.lock":
            assert (tmp_path / "copy" / path.relative_to(tmp_path / "run")).read_bytes() == path.read_bytes()
    assert Summary.from_json((tmp_path / "copy" / "summary.json").read_text()).methods


def test_a_run_goes_on_from_its_copy_on_another_machine(finished: Path, interrupted: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'copy'}"
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_after(9, monkeypatch)
        assert search(interrupted, f"--mirror={url}") == 2
    shutil.rmtree(interrupted)  # the machine is gone
    model, elsewhere = shutil.copytree(MODEL, tmp_path / "model"), tmp_path / "other" / "name"
    assert main(["search", "--resume", f"--run-dir={elsewhere}", f"--mirror={url}", f"--model={model}"]) == 0
    one, two = (Summary.from_json((path / "summary.json").read_text()) for path in (finished, elsewhere))
    assert two.methods == one.methods
    assert not read_measurements(elsewhere).duplicated(["candidate", "document"]).any()
    storage = JournalStorage(JournalFileBackend(str(elsewhere / JOURNAL)))
    assert len(optuna.get_all_study_names(storage)) == 1  # the one that it began with


def test_a_run_is_not_taken_up_with_another_model(
    interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(MODEL, tmp_path / "model")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert main(["search", "--resume", f"--run-dir={interrupted}", f"--model={other}"]) == 2
    assert "got another value of model_fingerprint than" in capsys.readouterr().err


def test_a_run_whose_driver_died_after_the_summary_is_finished_when_it_is_resumed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    write_status(run, replace(read_status(run), state="running"))
    assert main(["search", "--resume", f"--run-dir={run}", f"--mirror={tmp_path / 'copy'}"]) == 0
    assert read_status(run).state == "finished"
    assert (tmp_path / "copy" / "summary.json").read_bytes() == (run / "summary.json").read_bytes()


def test_the_script_for_ray_jobs_is_the_same_program_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "search/run.py"), "--model=nothing", "--corpus=noise", "--target-length=512"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("ropewalk: error: --model must be a folder")
    assert list(tmp_path.iterdir()) == []


def test_another_run_with_the_same_seed_finds_the_same(finished: Path, tmp_path: Path) -> None:
    assert search(tmp_path / "two") == 0
    one, two = (Summary.from_json((path / "summary.json").read_text()) for path in (finished, tmp_path / "two"))
    assert one.methods == two.methods


def test_another_seed_means_other_documents_and_other_numbers(finished: Path, tmp_path: Path) -> None:
    assert search(tmp_path / "other", "--seed=1") == 0
    one, other = read_measurements(finished), read_measurements(tmp_path / "other")
    assert set(one["document"]).isdisjoint(other["document"])


def test_search_and_heldout_documents_are_different_documents(finished: Path) -> None:
    measurements = read_measurements(finished)
    by_split = measurements.groupby("split")["document"].agg(set)
    assert by_split["search"].isdisjoint(by_split["heldout"])


@pytest.mark.parametrize("name", ["demo.yaml", "smollm2-135m-16k.yaml"])
def test_shipped_configurations_are_read(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = [f"--config={ROOT / 'search/configs' / name}", "--model=nothing", f"--corpus={HAYSTACK}"]
    assert main(["search", *options, f"--run-dir={tmp_path / 'run'}"]) == 2
    assert "--model must be a folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def small_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80_000_000,
        _temp_dir=str(tmp_path_factory.mktemp("r")),
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("small_ray")
def test_more_workers_than_the_cluster_can_place_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path / "crowd", "--workers=50") == 2
    assert "the cluster must have room for 50 workers" in capsys.readouterr().err
    assert not (tmp_path / "crowd").exists()


@pytest.mark.usefixtures("small_ray")
def test_a_run_on_ray_finds_what_the_run_in_this_process_finds(finished: Path, tmp_path: Path) -> None:
    assert search(tmp_path / "ray", "--workers=2") == 0
    local, on_ray = (Summary.from_json((path / "summary.json").read_text()) for path in (finished, tmp_path / "ray"))
    assert on_ray.winner == local.winner
    assert [method.critical_dim for method in on_ray.methods] == [method.critical_dim for method in local.methods]
    for here, there in zip(local.methods, on_ray.methods, strict=True):
        # one thread adds up in another order than two
        assert there.heldout_perplexity == pytest.approx(here.heldout_perplexity, rel=1e-3)
