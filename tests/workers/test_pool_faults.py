"""RayPool when nothing can be blamed on a task: idle workers that die, starts that hang, devices that are broken."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from needles.document import NeedleDocument
from workers.pool import RayPool
from workers.scorer import ClusterError, Scoring, ScoringFactory, Task

Documents = list[NeedleDocument]
Acting = Callable[[Callable[[str], object]], ScoringFactory]

pytestmark = pytest.mark.usefixtures("ray_cluster")


def wait_until(pool: RayPool, condition: Callable[[], bool]) -> None:
    """Let the pool work until something holds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 60
        pool._step()


def failures(pool: RayPool, num_tasks: int) -> list[str | None]:
    """What became of the next tasks of one document each."""
    return [measurement.failure for _ in range(num_tasks) for measurement in pool.collect()]


def kill(pids: Sequence[int]) -> None:
    """Kill processes and wait until they are gone."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    while any(Path("/proc", str(pid)).exists() for pid in pids):
        assert time.monotonic() - start < 20
        time.sleep(0.05)


def test_workers_that_die_while_idle_cost_no_task_a_try(
    acting: Acting, documents: Documents, tasks: list[Task]
) -> None:
    pool = RayPool(acting(lambda document_id: None), documents, num_workers=4, cpus_per_worker=0.25, max_retries=0)
    wait_until(pool, lambda: pool.num_workers == 4)
    kill([place.pid for place in pool.places[:3]])
    for task in tasks:
        pool.submit(task)
    assert failures(pool, len(tasks)) == [None] * 4
    assert pool.num_retries == 0
    kill([place.pid for place in pool.places])
    pool.submit(tasks[0])
    assert failures(pool, 1) == [None]
    assert pool.num_retries == 0
    pool.close()


def test_the_death_of_an_idle_worker_is_seen_without_a_task(acting: Acting, documents: Documents) -> None:
    pool = RayPool(acting(lambda document_id: None), documents, num_workers=1)
    (before,) = pool.places
    kill([before.pid])
    start = time.monotonic()
    wait_until(pool, lambda: pool.num_workers == 0)
    assert time.monotonic() - start < 10
    wait_until(pool, lambda: pool.num_workers == 1)
    assert pool.places != (before,)
    pool.close()


def test_an_idle_worker_that_hangs_is_replaced_and_gets_no_task(
    acting: Acting, documents: Documents, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.pool.ANSWER_SECONDS", 3.5)  # a minute in a run
    pool = RayPool(acting(lambda document_id: None), documents, num_workers=2, max_retries=0)
    wait_until(pool, lambda: pool.num_workers == 2)
    stopped = pool.places[0]
    os.kill(stopped.pid, signal.SIGSTOP)
    until = time.monotonic() + 3.2
    wait_until(pool, lambda: time.monotonic() > until)
    for task in tasks:
        pool.submit(task)
    assert failures(pool, len(tasks)) == [None] * 4  # by the other one
    wait_until(pool, lambda: stopped not in pool.places)
    pool.close()


def test_a_task_that_kills_an_idle_worker_at_once_is_tried_a_bounded_number_of_times(
    acting: Acting, documents: Documents, tasks: list[Task], tmp_path: Path
) -> None:
    def die(document_id: str) -> None:
        with (tmp_path / "tries").open("a") as file:
            file.write("x")
        os._exit(1)

    pool = RayPool(acting(die), documents, num_workers=1, max_retries=1)
    pool.submit(tasks[0])
    (failure,) = failures(pool, 1)
    assert str(failure).startswith("given up after 2 tries: ActorDiedError: ")
    # A death can swallow the sign of life just before it, but only once
    assert len((tmp_path / "tries").read_text()) in (2, 3)
    pool.close()


def test_a_start_that_hangs_is_ended_and_one_that_waits_for_room_is_not(
    acting: Acting, documents: Documents, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    idle = acting(lambda document_id: None)

    def make(documents: Sequence[NeedleDocument]) -> Scoring:
        for name in ("first", "second"):
            try:
                (tmp_path / name).touch(exist_ok=False)
            except FileExistsError:
                continue
            if name == "second":
                time.sleep(600)
            break
        return idle(documents)

    pool = RayPool(make, documents, num_workers=3, min_workers=2, start_seconds=4.0)
    wait_until(pool, lambda: pool.num_workers == 2)
    # One place is waited for, by the worker that asked third or by the one that was lost
    assert [worker.is_starting for worker in pool._workers if worker.place is None] == [False]
    pool.close()
    lost = [record.getMessage() for record in caplog.records if "is lost" in record.getMessage()]
    assert lost == ["a worker is lost, 1 of 3 are left, it is replaced (it did not start): not ready after 4 s"]


def test_five_tasks_in_a_row_that_are_given_up_end_the_run(
    acting: Acting, documents: Documents, tasks: list[Task]
) -> None:
    def refuse(document_id: str) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    pool = RayPool(acting(refuse), documents, num_workers=2, max_retries=1)
    for task in [*tasks, *tasks]:
        pool.submit(task)
    assert failures(pool, 4) == ["given up after 2 tries: RuntimeError: CUDA error: unspecified launch failure"] * 4
    for _ in range(2):
        with pytest.raises(ClusterError, match=r"able to score, got 5 tasks in a row that were given up, the last: Ru"):
            pool.collect()
    pool.close()


def test_tasks_that_are_given_up_between_successes_do_not_end_the_run(
    acting: Acting, documents: Documents, tasks: list[Task]
) -> None:
    def refuse(document_id: str) -> None:
        if document_id == "document-1":
            raise RuntimeError("not this one")

    pool = RayPool(acting(refuse), documents, num_workers=1, max_retries=0)
    for _ in range(8):
        pool.submit(tasks[0])
        pool.submit(tasks[1])
    assert failures(pool, 16) == [None, "RuntimeError: not this one"] * 8
    pool.close()
