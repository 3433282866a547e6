"""Searches on real clusters that are disturbed: workers and drivers are killed, nodes leave and join."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from results.status import read_status
from results.store import read_measurements
from results.summary import Summary
from rope.factors import load_factors
from search.cli import main

ROOT = Path(__file__).parents[2]
SEARCH = [
    sys.executable,
    str(ROOT / "search/run.py"),
    f"--model={ROOT / 'workers/reference/model'}",
    f"--corpus={ROOT / 'workers/reference/tom_sawyer.txt'}",
    "--dtype=float32",
    "--algorithm=longrope2",
    "--documents.num-validation=6",
    "--documents.num-original=4",
    "--formulas.methods=[none, yarn, longrope2]",
    "--formulas.temperatures=[paper]",
]
NUM_WORKER_KILLS = 20
NUM_DRIVER_KILLS = 3
PATIENCE_SECONDS = 600


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head with room for two workers."""
    options: dict[str, Any] = {"num_gpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    folder = tmp_path_factory.mktemp("r")
    # Ray takes half a minute to see that a node crashed, and until then it places actors there
    quickly = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 2}
    options["_system_config"] = quickly
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "temp_dir": str(folder), **options})
    yield cluster
    cluster.shutdown()  # type: ignore[no-untyped-call]


class Driver:
    """The command in a process of its own, which can be killed and started again."""

    def __init__(self, command: list[str], log: Path, *, address: str) -> None:
        self._command = command
        self._log = log
        # one thread, as Ray gives a worker of one CPU: another number adds up in another order
        self._environment = os.environ | {"RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        assert self._process is not None
        self._process.terminate()

    def is_running(self) -> bool:
        assert self._process is not None
        return self._process.poll() is None

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait(PATIENCE_SECONDS)

    def finish(self) -> None:
        assert self.wait() == 0, self.log()

    def log(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        if self._process is not None and self.is_running():
            self.kill()


def worker_pids(cluster: Cluster) -> list[int]:
    """Processes of scoring actors that this cluster started."""
    found = []
    for node in cluster.list_all_nodes():  # type: ignore[no-untyped-call]
        raylet = node.all_processes["raylet"][0].process.pid
        children = psutil.Process(raylet).children(recursive=True) if psutil.pid_exists(raylet) else []
        found += [child.pid for child in children if "ScoringActor" in _title(child)]
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_until(condition: Callable[[], bool], driver: Driver) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert driver.is_running(), driver.log()
        assert time.monotonic() < deadline, driver.log()
        time.sleep(0.05)


def num_measured(run: Path) -> int:
    return len(read_measurements(run)) if run.is_dir() else 0


def rows_as_written(run: Path) -> list[tuple[str, str]]:
    """Every record in the files, before anything could hide one that is there twice."""
    tables = [pq.read_table(part, columns=["candidate", "document"]) for part in (run / "measurements").iterdir()]
    return [(row["candidate"], row["document"]) for table in tables for row in table.to_pylist()]


def losses(run: Path) -> dict[tuple[str, str], float]:
    frame = read_measurements(run)
    return dict(zip(zip(frame["candidate"], frame["document"], strict=True), frame["sum_nll"], strict=True))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_worker_kills_and_three_driver_kills_change_nothing(cluster: Cluster, tmp_path: Path) -> None:
    command = [
        *SEARCH,
        "--target-length=1024",
        "--documents.num-search=6",
        "--documents.num-heldout=8",
        "--evolution.population-size=24",
        "--evolution.num-generations=12",
        "--evolution.num-parents=8",
        "--evolution.num-mutations=10",
        "--evolution.num-crossovers=6",
        "--schedule=generational",
    ]
    whole, run = tmp_path / "whole", tmp_path / "run"
    undisturbed = Driver([*command, f"--run-dir={whole}"], tmp_path / "whole.log", address="")
    undisturbed.start()
    undisturbed.finish()
    total = len(rows_as_written(whole))
    rng = np.random.default_rng(0)
    events = ["worker"] * NUM_WORKER_KILLS + ["driver"] * NUM_DRIVER_KILLS
    instants = np.sort(rng.choice(np.arange(5, int(0.95 * total)), size=len(events), replace=False))
    driver = Driver([*command, "--workers=2", f"--run-dir={run}"], tmp_path / "log", address=cluster.address)
    seen: dict[tuple[str, str], float] = {}
    try:
        driver.start()
        for event, instant in zip(rng.permutation(events), instants, strict=True):
            wait_until(lambda instant=instant: num_measured(run) >= instant, driver)  # type: ignore[misc]
            time.sleep(float(rng.uniform(0, 0.2)))
            before = losses(run)
            assert seen.items() <= before.items()  # nothing that was written is ever lost
            seen = before
            if event == "driver":
                driver.kill()
                driver.start()
            else:
                wait_until(lambda: bool(worker_pids(cluster)), driver)
                os.kill(int(rng.choice(worker_pids(cluster))), signal.SIGKILL)
        driver.finish()
    finally:
        driver.end()
    written = rows_as_written(run)
    assert len(written) == len(set(written)) == total
    assert seen.items() <= losses(run).items()
    assert losses(run) == losses(whole)
    mine, theirs = (Summary.from_json((path / "summary.json").read_text()) for path in (run, whole))
    assert mine.methods == theirs.methods
    assert load_factors(run / "factors.json").values == load_factors(whole / "factors.json").values
    assert driver.log().count("taking up the run") == NUM_DRIVER_KILLS
    assert read_status(run).num_failed == 0


def test_a_node_is_removed_and_another_added_during_a_search(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [
        *SEARCH,
        "--target-length=512",
        "--documents.num-search=16",
        "--documents.num-heldout=6",
        "--evolution.population-size=40",
        "--evolution.num-generations=4",
        "--evolution.num-parents=8",
        "--evolution.num-mutations=40",
        "--evolution.num-crossovers=0",
        "--workers=3",
        "--min-workers=2",
        f"--run-dir={run}",
    ]
    extra: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
    node = cluster.add_node(**extra)
    driver = Driver(command, tmp_path / "log", address=cluster.address)
    try:
        driver.start()
        wait_until(lambda: driver.log().count("worker is ready") >= 3, driver)
        wait_until(lambda: num_measured(run) >= 20, driver)
        cluster.remove_node(node, allow_graceful=False)
        removed = num_measured(run)
        wait_until(lambda: " is lost" in driver.log(), driver)
        cluster.add_node(**extra)
        wait_until(lambda: len(re.findall("is ready", driver.log())) >= 4, driver)
        driver.finish()
    finally:
        driver.end()
    assert removed < num_measured(run)
    written = rows_as_written(run)
    assert len(written) == len(set(written))
    status = read_status(run)
    assert (status.state, status.num_failed) == ("finished", 0)
    assert 40 + 4 * 40 < status.num_candidates <= status.total_candidates


def test_a_job_that_is_told_to_stop_gives_its_workers_back_and_says_how_to_resume(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    driver = Driver(
        [*SEARCH, "--target-length=512", "--workers=2", f"--run-dir={run}"], tmp_path / "log", address=cluster.address
    )
    try:
        driver.start()
        wait_until(lambda: num_measured(run) >= 30, driver)
        driver.terminate()  # as `ray job stop` does; Ray sets a handler of its own for it
        assert driver.wait() == 2
    finally:
        driver.end()
    assert f"resume with: ropewalk search --resume --run-dir {run}" in driver.log()
    assert "Traceback" not in driver.log()
    assert (read_status(run).state, read_status(run).num_documents) == ("stopped", num_measured(run))
    deadline = time.monotonic() + 30
    while worker_pids(cluster):
        assert time.monotonic() < deadline, "the workers are still there"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_whose_whole_cluster_dies_goes_on_elsewhere(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("r")
    options: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "temp_dir": str(folder)}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    run = tmp_path / "run"
    command = [*SEARCH, "--target-length=512", f"--run-dir={run}", "--evolution.num-generations=1"]
    driver = Driver([*command, "--workers=1"], tmp_path / "log", address=cluster.address)
    try:
        driver.start()
        wait_until(lambda: num_measured(run) >= 30, driver)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
    try:
        assert driver.wait() != 0  # Ray ends a process whose own node is gone, with no chance of a last word
    finally:
        driver.end()
    before = num_measured(run)
    assert main(["status", str(run)]) == 0
    assert f"resume with: ropewalk search --resume --run-dir {run}" in capsys.readouterr().out
    elsewhere = Driver([*command, "--resume"], tmp_path / "second.log", address="")
    elsewhere.start()
    elsewhere.finish()
    written = rows_as_written(run)
    assert len(written) == len(set(written)) > before >= 30
