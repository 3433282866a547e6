"""RayPool on a real, tiny Ray: the results of the local scorer, and no task lost whatever happens to a worker."""

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import ray

from needles.document import NeedleDocument
from results.measurement import Measurement
from rope.factors import RescaleFactors
from workers.local import LocalScorer
from workers.model import LoadedModel, load_model
from workers.pool import RayPool
from workers.scorer import ClusterError, Scorer, Scoring, ScoringFactory, Task
from workers.scoring import NeedleScoring, load_scoring

MakeFactors = Callable[..., RescaleFactors]
Documents = list[NeedleDocument]
Act = Callable[[str], object]
Acting = Callable[[Act], ScoringFactory]

pytestmark = pytest.mark.usefixtures("ray_cluster")


def at_first(folder: Path, document: str, act: Callable[[], object]) -> Act:
    """Acts at the first try of one document, in whichever process that is."""

    def act_once(document_id: str) -> None:
        if document_id == document and not (folder / "tried").exists():
            (folder / "tried").touch()
            act()

    return act_once


def collect_all(scorer: Scorer, tasks: Sequence[Task]) -> dict[tuple[str, str], Measurement]:
    """Every measurement by candidate and document."""
    for task in tasks:
        scorer.submit(task)
    measurements = [measurement for _ in tasks for measurement in scorer.collect()]
    assert scorer.collect() == []
    found = {(measurement.candidate, measurement.document): measurement for measurement in measurements}
    assert len(found) == len(measurements)
    return found


def failures(measured: dict[tuple[str, str], Measurement]) -> dict[str, str | None]:
    """Each document's failure."""
    return {document: measurement.failure for (_, document), measurement in measured.items()}


NONE_FAILED = dict.fromkeys(f"document-{number}" for number in range(4))


def test_a_pool_measures_what_the_local_scorer_does(
    model_folder: Callable[[str], Path], make_factors: MakeFactors, load: Callable[[str], object], documents: Documents
) -> None:
    load_llama = partial(load_model, str(model_folder("llama")), dtype="float32", device="cpu")
    candidates = [make_factors(load_llama(), method) for method in ("none", "linear", "yarn")]
    batches = [("document-0", "document-1"), ("document-2", "document-3")]
    tasks = [Task(candidate, batch) for candidate in candidates for batch in batches]
    pool = RayPool(partial(load_scoring, load=load_llama), documents, num_workers=2)
    assert pool.capacity == 4
    assert pool.accelerators == ()
    ours = collect_all(pool, tasks)
    pool.close()
    pool.close()
    assert ray.is_initialized()  # the pool did not start it
    local = collect_all(LocalScorer(NeedleScoring(load_llama(), documents), documents), tasks)
    assert ours.keys() == local.keys()
    for key, measurement in ours.items():
        assert measurement.failure is None
        # The order of float32 sums may differ with the number of threads
        assert measurement.sum_nll == pytest.approx(local[key].sum_nll, rel=1e-5)
        assert (measurement.num_tokens, measurement.depth) == (local[key].num_tokens, local[key].depth)


def test_a_pool_gives_the_local_scorers_gradients_also_at_a_second_try(
    model_folder: Callable[[str], Path],
    make_factors: MakeFactors,
    load: Callable[[str], LoadedModel],
    documents: Documents,
    tmp_path: Path,
) -> None:
    load_llama = partial(load_model, str(model_folder("llama")), dtype="float32", device="cpu")

    def make(documents: Sequence[NeedleDocument]) -> Scoring:
        loaded = load_llama()
        scoring = NeedleScoring(loaded, documents)

        def refuse_once(module: object, args: object) -> None:
            if not (tmp_path / "tried").exists():
                (tmp_path / "tried").touch()
                raise RuntimeError("not now")

        loaded.model.register_forward_pre_hook(refuse_once)
        return scoring

    factors = make_factors(load("llama"), "yarn")
    tasks = [
        Task(factors, ("document-0", "document-1"), with_gradient=True),
        Task(factors, ("document-2",), with_gradient=True),
        Task(factors, ("document-3",)),
    ]
    pool = RayPool(make, documents, num_workers=1)
    ours = collect_all(pool, tasks)
    assert pool.num_retries == 1
    pool.close()
    local = collect_all(LocalScorer(NeedleScoring(load("llama"), documents), documents), tasks)
    assert [key[1] for key, measurement in ours.items() if measurement.gradient is None] == ["document-3"]
    for key, measurement in ours.items():
        assert measurement.sum_nll == pytest.approx(local[key].sum_nll, rel=1e-5)
        # float32 sums of another order, as many threads give them, in sums of 128 tokens that cancel
        assert measurement.gradient == (local[key].gradient and pytest.approx(local[key].gradient, rel=1e-3, abs=1e-3))


def test_a_killed_worker_is_replaced_and_its_tasks_are_measured(
    acting: Acting, documents: Documents, tasks: list[Task], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="workers.pool")
    # Long at the first try only: the pool would wait for ten minutes
    slow = acting(at_first(tmp_path, "document-0", lambda: time.sleep(600)))
    pool = RayPool(slow, documents, num_workers=1)
    (killed,) = pool.places
    for task in tasks:
        pool.submit(task)
    while not (tmp_path / "tried").exists():
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    measured = [measurement for _ in tasks for measurement in pool.collect()]
    assert {measurement.document: measurement.failure for measurement in measured} == NONE_FAILED
    assert measured[0].document == "document-0"  # put back in front
    assert (pool.num_retries, pool.num_workers) == (1, 1)
    assert pool.places[0].pid != killed.pid
    pool.close()
    assert f"it is replaced ({killed.node}, process {killed.pid}): " in caplog.text
    assert "a worker is ready, 1 of 1: " in caplog.text


def test_a_document_that_always_kills_fails_after_bounded_tries_and_no_other(
    acting: Acting, documents: Documents, tasks: list[Task]
) -> None:
    deadly = acting(lambda document_id: os._exit(1) if document_id == "document-1" else None)
    pool = RayPool(deadly, documents, num_workers=2, max_retries=2)
    measured = failures(collect_all(pool, tasks))
    reason = str(measured.pop("document-1"))
    assert reason.startswith("given up after 3 tries: ActorDiedError: ")
    assert "\n" not in reason
    assert set(measured.values()) == {None}
    # A death can swallow the answer to the task before, which is then tried once more
    assert pool.num_retries in (2, 3)
    pool.close()


def test_a_document_that_always_raises_fails_after_bounded_tries_and_no_other(
    acting: Acting, documents: Documents, tasks: list[Task], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(document_id: str) -> None:
        if document_id == "document-1":
            raise RuntimeError("device-side assert\nwith more lines")

    pool = RayPool(acting(refuse), documents, num_workers=1, max_retries=3)
    (before,) = pool.places
    measured = failures(collect_all(pool, tasks))
    assert measured.pop("document-1") == "given up after 4 tries: RuntimeError: device-side assert"
    assert set(measured.values()) == {None}
    pool.close()
    # It raised twice in a row
    assert f"it is replaced ({before.node}, process {before.pid}): RuntimeError: device-side assert" in caplog.text


def test_a_worker_that_raises_once_goes_on(
    acting: Acting, documents: Documents, tasks: list[Task], tmp_path: Path
) -> None:
    def refuse() -> None:
        raise RuntimeError("not now")

    pool = RayPool(acting(at_first(tmp_path, "document-2", refuse)), documents, num_workers=1)
    (before,) = pool.places
    assert failures(collect_all(pool, tasks)) == NONE_FAILED
    assert (pool.num_retries, pool.places) == (1, (before,))
    pool.close()


@pytest.mark.parametrize("stop", [lambda: time.sleep(600), lambda: os.kill(os.getpid(), signal.SIGSTOP)])
def test_a_worker_that_hangs_is_replaced(
    acting: Acting,
    documents: Documents,
    tasks: list[Task],
    tmp_path: Path,
    stop: Callable[[], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hanging = acting(at_first(tmp_path, "document-0", stop))
    pool = RayPool(hanging, documents, num_workers=1, document_timeout=2.0)
    (before,) = pool.places
    start = time.monotonic()
    assert failures(collect_all(pool, tasks)) == NONE_FAILED
    assert 2 < time.monotonic() - start < 30
    assert pool.num_retries == 1
    pool.close()
    assert "no answer in 2 s" in caplog.text
    # Ray asks for five seconds, then it kills
    while time.monotonic() - start < 30 and Path("/proc", str(before.pid)).exists():
        time.sleep(0.1)
    assert not Path("/proc", str(before.pid)).exists()


def test_starts_that_fail_later_end_the_run_when_none_is_left(
    acting: Acting,
    documents: Documents,
    tasks: list[Task],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.pool.QUIET_SECONDS", 2.0)  # a minute in a run
    die_at_work = acting(lambda document_id: os._exit(1))

    def make(documents: Sequence[NeedleDocument]) -> Scoring:
        if (tmp_path / "started").exists():
            raise OSError("the disk is gone")
        (tmp_path / "started").touch()
        return die_at_work(documents)

    pool = RayPool(make, documents, num_workers=1, start_seconds=4.0)
    pool.submit(tasks[0])
    with pytest.raises(ClusterError, match=r"one worker must be alive, got none for 4 seconds, the last: OSError: the"):
        pool.collect()
    pool.close()
    quiet = "0 of 1 workers are ready, 0 tasks are with them, 1 wait; the last loss: OSError: the disk is gone"
    assert quiet in caplog.text


def test_more_workers_than_the_cluster_can_place_are_refused_at_once(acting: Acting, documents: Documents) -> None:
    idle = acting(lambda document_id: None)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"room for 3 workers of 1 CPUs and 0 GPUs each, got room for 2: 2 CPUs and 0"):
        RayPool(idle, documents, num_workers=3)
    with pytest.raises(ValueError, match=r"room for 1 workers of 1 CPUs and 0.5 GPUs each, got room for 0"):
        RayPool(idle, documents, num_workers=1, gpus_per_worker=0.5)
    with pytest.raises(ValueError, match=r"got room for 0: .* on 1 nodes. Ask for fewer workers"):
        RayPool(idle, documents, num_workers=1, cpus_per_worker=3)
    with pytest.raises(ValueError, match=r"must be a whole number where it is above 1, got 1.5. Round it"):
        RayPool(idle, documents, num_workers=1, gpus_per_worker=1.5)
    assert time.monotonic() - start < 10


def test_numbers_out_of_range_are_refused(acting: Acting, documents: Documents) -> None:
    idle = acting(lambda document_id: None)
    with pytest.raises(ValueError, match=r"at least 1 worker, got 0. Use 0 workers for no Ray at all"):
        RayPool(idle, documents, num_workers=0)
    with pytest.raises(ValueError, match=r"--min-workers must be between 1 and the 2 workers asked for, got 3"):
        RayPool(idle, documents, num_workers=2, min_workers=3)
    with pytest.raises(ValueError, match=r"--retries must be at least 0, got -1"):
        RayPool(idle, documents, num_workers=2, max_retries=-1)


def test_a_model_that_no_worker_can_load_is_one_clear_line(documents: Documents, tmp_path: Path) -> None:
    load = partial(load_model, str(tmp_path / "nowhere"), dtype="float32", device="cpu")
    with pytest.raises(ValueError, match=r"every worker must load the model, got ValueError: --model must be") as error:
        RayPool(partial(load_scoring, load=load), documents, num_workers=1)
    assert "\n" not in str(error.value)


def test_a_worker_that_dies_while_it_loads_is_one_clear_line(documents: Documents) -> None:
    def die(documents: Sequence[NeedleDocument]) -> Scoring:
        os._exit(1)

    with pytest.raises(ValueError, match=r"every worker must load the model, got ActorDiedError: ") as error:
        RayPool(die, documents, num_workers=1, max_retries=1)
    assert "\n" not in str(error.value)


def test_a_worker_that_is_killed_while_it_loads_is_replaced_even_where_it_is_the_first(
    acting: Acting, documents: Documents, tmp_path: Path
) -> None:
    idle, died = acting(lambda document_id: None), tmp_path / "died"

    def die_once(documents: Sequence[NeedleDocument]) -> Scoring:
        if not died.exists():
            died.touch()
            os._exit(1)
        return idle(documents)

    pool = RayPool(die_once, documents, num_workers=1)
    assert pool.num_workers == 1
    pool.close()


def test_a_cluster_that_is_busy_is_not_waited_for_without_end(acting: Acting, documents: Documents) -> None:
    idle = acting(lambda document_id: None)
    pool = RayPool(idle, documents, num_workers=2)
    while pool.num_workers < 2:
        pool._step()
    with pytest.raises(ValueError, match=r"one of 1 workers must start within 1 seconds, got none. Is the cluster"):
        RayPool(idle, documents, num_workers=1, start_seconds=1.0)
    pool.close()
