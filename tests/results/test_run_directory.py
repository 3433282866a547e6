"""The run directory."""

import hashlib
import json
import os
import subprocess
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import yaml

from results.run_directory import RunDirectory
from results.run_lock import RunLock
from tests.results.stopping import killed_at

CONFIG = {
    "model": "models/tiny",
    "target_length": 1024,
    "original_length": None,
    "space": {"low": None, "step": 1e-05, "critical_dims": (5, 6)},
    "formulas": {},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_new_folder_gets_the_configuration_and_its_hash(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "deep" / "run", CONFIG, resume=False)
    written = (tmp_path / "deep" / "run" / "config.yaml").read_bytes()
    assert yaml.safe_load(written) == {**CONFIG, "space": {"low": None, "step": 1e-05, "critical_dims": [5, 6]}}
    assert run.config_sha256 == hashlib.sha256(written).hexdigest()
    assert sorted(contents(run.path)) == ["config.sha256", "config.yaml"]


def test_sha256sum_confirms_the_hash(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG, resume=False)
    subprocess.run(["sha256sum", "--check", "config.sha256"], cwd=run.path, check=True, capture_output=True)


def test_an_empty_folder_is_as_good_as_a_new_one(tmp_path: Path) -> None:
    assert RunDirectory.create(tmp_path, CONFIG, resume=False).path == tmp_path


def test_the_path_is_absolute_wherever_the_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunDirectory.create("run", CONFIG, resume=False).path == tmp_path / "run"


def test_equal_configurations_have_equal_hashes_and_others_have_not(tmp_path: Path) -> None:
    one = RunDirectory.create(tmp_path / "one", CONFIG, resume=False)
    two = RunDirectory.create(tmp_path / "two", CONFIG, resume=False)
    other = RunDirectory.create(tmp_path / "other", {**CONFIG, "target_length": 2048}, resume=False)
    assert one.config_sha256 == two.config_sha256 != other.config_sha256


def test_a_resumed_run_is_the_run_and_nothing_in_it_changes(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG, resume=False)
    run.write_text("study.journal", "trials")
    before = contents(run.path)
    assert RunDirectory.create(tmp_path / "run", CONFIG, resume=True) == run
    assert contents(run.path) == before


def test_json_and_text_are_written_and_replaced(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, CONFIG, resume=False)
    run.write_json("fragment.json", {"factor": 4.0})
    assert run.write_json("fragment.json", {"factor": 8.0}) == tmp_path / "fragment.json"
    assert json.loads((tmp_path / "fragment.json").read_text()) == {"factor": 8.0}
    assert run.write_text("table.txt", "λ\n") == tmp_path / "table.txt"
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") == "λ\n"


def test_json_that_only_python_could_read_is_not_written(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, CONFIG, resume=False)
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        run.write_json("summary.json", {"perplexity": float("nan")})
    assert not (tmp_path / "summary.json").exists()


def test_a_folder_with_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG, resume=False)
    before = contents(run.path)
    with pytest.raises(
        ValueError,
        match=r"^run directory .*run must be new or empty, got one that already holds a run\. "
        r"Choose another folder with --run-dir\.$",
    ):
        RunDirectory.create(run.path, {**CONFIG, "target_length": 2048}, resume=False)
    assert contents(run.path) == before


@pytest.mark.parametrize("file", ["notes.txt", "config.yaml", "config.sha256", ".notes.tmp"])
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("mine: true  # and nobody else's\n")
    with pytest.raises(
        ValueError, match=r"^run directory .* must be new or empty, got one with other files in it\. .*$"
    ):
        RunDirectory.create(tmp_path, CONFIG, resume=False)
    assert contents(tmp_path) == {file: b"mine: true  # and nobody else's\n"}


def test_a_start_that_was_killed_at_any_line_can_be_started_again_or_resumed(tmp_path: Path) -> None:
    resumed = []
    for step in count():
        folder = tmp_path / str(step)
        with RunLock(folder):
            was_killed = killed_at(step, partial(RunDirectory.create, folder, CONFIG, resume=False))
            resumed.append(RunDirectory.holds_run(folder))
            if not resumed[-1]:
                RunDirectory.check_free(folder)
            other = {**CONFIG, "target_length": 1024 if resumed[-1] else 2048}
            run = RunDirectory.create(folder, other, resume=resumed[-1])
        assert RunDirectory.read_config(folder)["target_length"] == other["target_length"]
        subprocess.run(["sha256sum", "--check", "config.sha256"], cwd=run.path, check=True, capture_output=True)
        if not was_killed:
            break
    assert set(resumed) == {True, False}


@pytest.mark.parametrize("left", [["config.yaml"], [".config.yaml.77.tmp"], ["config.yaml", ".config.sha256.77.tmp"]])
def test_what_a_killed_start_left_is_replaced(tmp_path: Path, left: list[str]) -> None:
    before = RunDirectory.create(tmp_path / "before", {**CONFIG, "target_length": 2048}, resume=False)
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_bytes((before.path / "config.yaml").read_bytes())
    RunDirectory.check_free(tmp_path / "run")
    run = RunDirectory.create(tmp_path / "run", CONFIG, resume=False)
    assert RunDirectory.create(tmp_path / "run", CONFIG, resume=True) == run


def test_another_spelling_of_the_path_is_the_same_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "gone" / ".." / "run", {**CONFIG, "run_dir": "run"}, resume=False)
    assert run.path == tmp_path / "run"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    spelling = tmp_path / "gone" / ".." / "run"
    assert RunDirectory.holds_run(spelling)
    assert RunDirectory.read_config(spelling)["run_dir"] == "run"
    config = {**CONFIG, "run_dir": str(spelling)}
    assert RunDirectory.create(spelling, config, resume=True, may_change=["run_dir"]) == run


def test_a_symbolic_link_in_the_path_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    assert RunDirectory.create(tmp_path / "link" / "run", CONFIG, resume=False).path == tmp_path / "link" / "run"


def test_resuming_with_another_configuration_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, CONFIG, resume=False)
    changed = {**CONFIG, "target_length": 2048, "space": {"low": None, "step": 1e-05, "high": 8}, "formulas": {"a": 1}}
    with pytest.raises(
        ValueError,
        match=r"^a resumed run must keep its configuration, got another value of formulas, formulas\.a, "
        r"space\.critical_dims, space\.high, target_length than .*config\.yaml has\. .*$",
    ):
        RunDirectory.create(tmp_path, changed, resume=True)


def test_a_resumed_run_may_change_what_its_caller_allows_and_keeps_the_file_of_its_start(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, CONFIG, resume=False)
    before = contents(tmp_path)
    changed = {**CONFIG, "target_length": 2048, "space": {"low": 2.0, "step": 0.1, "critical_dims": (5, 6)}}
    assert RunDirectory.create(tmp_path, changed, resume=True, may_change=["target_length", "space"]) == run
    assert RunDirectory.create(tmp_path, changed, resume=True, may_change={"target_length", "space.low", "space.step"})
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match=r"got another value of space\.low, space\.step than"):
        RunDirectory.create(tmp_path, changed, resume=True, may_change=["target_length", "spac"])


def test_a_run_can_be_found_and_its_configuration_read(tmp_path: Path) -> None:
    assert not RunDirectory.holds_run(tmp_path)
    assert not RunDirectory.holds_run(tmp_path / "gone")
    RunDirectory.create(tmp_path, CONFIG, resume=False)
    assert RunDirectory.holds_run(tmp_path)
    config = RunDirectory.read_config(tmp_path)
    assert config == {**CONFIG, "space": {"low": None, "step": 1e-05, "critical_dims": [5, 6]}}
    assert RunDirectory.create(tmp_path, config, resume=True).path == tmp_path


def test_a_configuration_is_not_read_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^run directory .* must hold a run to resume, got none\. Leave out "):
        RunDirectory.read_config(tmp_path)


def test_a_folder_that_its_driver_has_locked_is_as_good_as_an_empty_one(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        RunDirectory.check_free(tmp_path / "run")
        run = RunDirectory.create(tmp_path / "run", CONFIG, resume=False)
    assert sorted(contents(run.path)) == ["config.sha256", "config.yaml", "driver.lock"]


@pytest.mark.parametrize("existing", [True, False])
def test_resuming_where_there_is_no_run_is_refused_and_makes_nothing(tmp_path: Path, existing: bool) -> None:
    folder = tmp_path if existing else tmp_path / "run"
    with pytest.raises(
        ValueError, match=r"^run directory .* must hold a run to resume, got none\. Leave out --resume .*$"
    ):
        RunDirectory.create(folder, CONFIG, resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", [b"a: [", b"\xff", b"just text"], ids=["no YAML", "no UTF-8", "no mapping"])
def test_resuming_a_run_with_a_damaged_configuration_is_refused(tmp_path: Path, damaged: bytes) -> None:
    RunDirectory.create(tmp_path, CONFIG, resume=False)
    (tmp_path / "config.yaml").write_bytes(damaged)
    with pytest.raises(
        ValueError, match=r"^.*config\.yaml must be the YAML that the run wrote, got something else\. .*$"
    ):
        RunDirectory.create(tmp_path, CONFIG, resume=True)


@pytest.mark.parametrize("name", ["file", "file/run", "x" * 300])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        ValueError,
        match=r"^run directory .* must be a folder that can be written to, got: "
        r"(File exists|Not a directory|File name too long)\. Choose another with --run-dir\.$",
    ):
        RunDirectory.create(tmp_path / name, CONFIG, resume=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("name", [".", "run"])
def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path: Path, name: str) -> None:
    read_only = tmp_path / "read-only"
    read_only.mkdir(mode=0o555)
    with pytest.raises(ValueError, match=r"^run directory .* can be written to, got: Permission denied\. .*$"):
        RunDirectory.create(read_only / name, CONFIG, resume=False)
