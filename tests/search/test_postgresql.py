"""The ledger in a real PostgreSQL server: a search that is killed and taken up, and a password that nobody sees."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from math import e
from pathlib import Path

import optuna
import pytest

from results.store import read_measurements
from results.summary import Summary
from search.cli import main
from search.samplers.longrope2 import EvolutionConfig, LongRoPE2Sampler
from search.space import SearchSpace
from search.study import Trials, open_storage, open_study
from tests.search.postgresql import USER, NoPostgresqlError, Server, postgresql
from tests.search.telling import tell

ROOT = Path(__file__).parents[2]
SMALL = [
    f"--model={ROOT / 'workers/reference/model'}",
    f"--corpus={ROOT / 'workers/reference/tom_sawyer.txt'}",
    "--target-length=512",
    "--dtype=float32",
    "--algorithm=longrope2",
    "--documents.num-search=4",
    "--documents.num-validation=4",
    "--documents.num-heldout=4",
    "--documents.num-original=2",
    "--evolution.population-size=8",
    "--evolution.num-generations=2",
    "--evolution.num-parents=4",
    "--evolution.num-mutations=3",
    "--evolution.num-crossovers=3",
    "--formulas.methods=[none, yarn]",
    "--formulas.temperatures=[paper]",
    "--schedule=generational",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that lives as long as these tests."""
    try:
        with postgresql(tmp_path_factory.mktemp("postgresql")) as server:
            yield server
    except NoPostgresqlError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.url


def test_a_driver_that_is_killed_goes_on_from_the_server_and_ends_as_an_undisturbed_one(
    url: str, tmp_path: Path
) -> None:
    assert main(["search", *SMALL, f"--run-dir={tmp_path / 'whole'}"]) == 0
    command = [sys.executable, str(ROOT / "search/run.py"), *SMALL, f"--run-dir={tmp_path / 'run'}", f"--storage={url}"]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and _num_measured(tmp_path / "run") < 20:
            assert driver.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    assert _num_measured(tmp_path / "run") >= 20
    assert not (tmp_path / "run" / "summary.json").exists()
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    whole, run = (Summary.from_json((tmp_path / name / "summary.json").read_text()) for name in ("whole", "run"))
    assert run.methods == whole.methods
    assert not read_measurements(tmp_path / "run").duplicated(["candidate", "document"]).any()
    trials = optuna.load_study(study_name="model to 512 tokens, run", storage=url).trials
    assert {trial.state for trial in trials} == {optuna.trial.TrialState.COMPLETE}
    _assert_nobody_sees_the_password(tmp_path / "run", (tmp_path / "log").read_text() + resumed.stdout + resumed.stderr)
    study = optuna.load_study(study_name="model to 512 tokens, run", storage=url)
    assert "s3cret" not in json.dumps([study.user_attrs, study._storage.get_study_system_attrs(study._study_id)])


def _num_measured(run: Path) -> int:
    return len(read_measurements(run)) if run.is_dir() else 0


def _assert_nobody_sees_the_password(run: Path, log: str) -> None:
    written = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert [path for path, content in written.items() if b"s3cret" in content] == []
    assert f"postgresql+psycopg://{USER}@127.0.0.1".encode() in written[run / "config.yaml"]
    assert "s3cret" not in log


def test_a_wrong_password_is_one_line_without_it(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^--storage must be a URL that Optuna can open, got an error: .*auth"
    ) as caught:
        open_storage(f"postgresql+psycopg://{USER}:wr0ng@{server.address}/postgres", run_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert "wr0ng" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line_in_seconds(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^--storage must be a URL that Optuna can open, got an error: .*refused"):
        open_storage(f"postgresql+psycopg://{USER}:x@127.0.0.1:9/postgres", run_dir=tmp_path)
    assert time.monotonic() - start < 15


def test_a_server_that_is_away_for_a_while_is_waited_for_and_nothing_is_written_twice(
    server: Server, space: SearchSpace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = open_study("restarted", storage=open_storage(server.url, run_dir=tmp_path), identity={}, note="")
    trials, sampler = Trials(study), LongRoPE2Sampler(space, EvolutionConfig(population_size=10), seed=0)
    first = trials.ask_candidate(sampler)
    server.stop()
    threading.Timer(3.0, server.start).start()
    tell(trials, first, 1.0)
    assert "the study's storage does not answer and is tried again" in caplog.text
    assert "s3cret" not in caplog.text
    server.stop()
    restarting = threading.Timer(3.0, server.start)
    restarting.start()
    second = trials.ask_candidate(sampler)
    restarting.join()
    tell(trials, second, 2.0)
    stored = open_study("restarted", storage=open_storage(server.url, run_dir=tmp_path), identity={}, note="").trials
    assert [trial.number for trial in stored] == [0, 1]
    assert [trial.value for trial in stored] == pytest.approx([e, e**2])
    assert sampler.searched(stored)[1].params == trials.searched(sampler)[1].params
