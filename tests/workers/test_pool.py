"""RayPool on a real, tiny Ray: the results of the local scorer, and no task lost whatever happens to a worker."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from torch import Tensor, nn

from needles.document import NeedleDocument
from results.measurement import Measurement, candidate_key
from rope.factors import RescaleFactors
from workers.actor import ModelLoader
from workers.local import LocalScorer
from workers.model import LoadedModel, load_model
from workers.pool import RayPool
from workers.scorer import Scorer, Task
from workers.scoring import NUM_PROBE_TOKENS, NeedleScoring

MakeFactors = Callable[..., RescaleFactors]
Documents = list[NeedleDocument]

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def load_llama(model_folder: Callable[[str], Path]) -> ModelLoader:
    """What a pool is given: loads the tiny Llama wherever it is called."""
    return partial(load_model, str(model_folder("llama")), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tasks(load_llama: ModelLoader, make_factors: MakeFactors, documents: Documents) -> list[Task]:
    """Three candidates on two batches."""
    loaded = load_llama()
    batches = [("document-0", "document-1"), ("document-2", "document-3")]
    return [Task(make_factors(loaded, method), batch) for method in ("none", "linear", "yarn") for batch in batches]


def dying_in(load: ModelLoader, is_fatal: Callable[[int], bool]) -> ModelLoader:
    """Loads a model whose process dies in a forward of a fatal number of tokens; nested, so that Ray sends its code."""

    def load_mortal() -> LoadedModel:
        loaded = load()

        def die(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            if is_fatal(kwargs["input_ids"].shape[1]):
                os._exit(1)

        loaded.model.register_forward_pre_hook(die, with_kwargs=True)
        return loaded

    return load_mortal


def collect_all(scorer: Scorer, tasks: list[Task]) -> dict[tuple[str, str], Measurement]:
    """Every measurement by candidate and document."""
    for task in tasks:
        scorer.submit(task)
    measurements = [measurement for _ in tasks for measurement in scorer.collect()]
    assert scorer.collect() == []
    found = {(measurement.candidate, measurement.document): measurement for measurement in measurements}
    assert len(found) == len(measurements)
    return found


def test_a_pool_measures_what_the_local_scorer_does(
    load_llama: ModelLoader, documents: Documents, tasks: list[Task]
) -> None:
    pool = RayPool(load_llama, documents, num_workers=2, cpus_per_worker=1.0)
    assert pool.capacity == 4
    ours = collect_all(pool, tasks)
    pool.close()
    pool.close()
    assert ray.is_initialized()  # the pool did not start it
    local = collect_all(LocalScorer(NeedleScoring(load_llama(), documents)), tasks)
    assert ours.keys() == local.keys()
    for key, measurement in ours.items():
        assert measurement.failure is None
        # The order of float32 sums may differ with the number of threads
        assert measurement.sum_nll == pytest.approx(local[key].sum_nll, rel=1e-5)
        assert (measurement.num_tokens, measurement.depth) == (local[key].num_tokens, local[key].depth)


def test_workers_that_die_fail_their_task_and_when_none_is_left_all_tasks(
    load_llama: ModelLoader, documents: Documents, tasks: list[Task]
) -> None:
    mortal = dying_in(load_llama, lambda num_tokens: num_tokens > NUM_PROBE_TOKENS)
    pool = RayPool(mortal, documents, num_workers=2)
    failed = collect_all(pool, tasks)
    pool.close()
    assert len(failed) == 12
    reasons = [str(measurement.failure) for measurement in failed.values()]
    assert sum("ActorDiedError: " in reason for reason in reasons) == 4
    assert sum("no Ray worker is left of 2" in reason for reason in reasons) == 8


def test_a_worker_that_raises_fails_its_task_and_goes_on(
    load_llama: ModelLoader, documents: Documents, tasks: list[Task]
) -> None:
    pool = RayPool(load_llama, documents[:2], num_workers=1)
    known, unknown = tasks[0], tasks[1]
    pool._documents.update({document.id: document for document in documents})
    for task in (unknown, known):
        pool.submit(task)
    failed, measured = pool.collect(), pool.collect()
    pool.close()
    assert [measurement.failure for measurement in failed] == ["KeyError: 'document-2'"] * 2
    assert [measurement.candidate for measurement in failed] == [candidate_key(unknown.candidate)] * 2
    assert [measurement.failure for measurement in measured] == [None] * 2


def test_more_workers_than_the_cluster_can_place_are_refused_at_once(
    load_llama: ModelLoader, documents: Documents
) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"room for 3 workers of 1 CPUs and 0 GPUs each, got room for 2: 2 CPUs and 0"):
        RayPool(load_llama, documents, num_workers=3)
    with pytest.raises(ValueError, match=r"room for 1 workers of 1 CPUs and 0.5 GPUs each, got room for 0"):
        RayPool(load_llama, documents, num_workers=1, gpus_per_worker=0.5)
    with pytest.raises(ValueError, match=r"got room for 0: .* on 1 nodes. Ask for fewer workers"):
        RayPool(load_llama, documents, num_workers=1, cpus_per_worker=3)
    assert time.monotonic() - start < 10


def test_a_pool_of_no_workers_is_refused(load_llama: ModelLoader, documents: Documents) -> None:
    with pytest.raises(ValueError, match=r"at least 1 worker, got 0. Use 0 workers for no Ray at all"):
        RayPool(load_llama, documents, num_workers=0)


def test_a_model_that_no_worker_can_load_is_one_clear_line(documents: Documents, tmp_path: Path) -> None:
    load = partial(load_model, str(tmp_path / "nowhere"), dtype="float32", device="cpu")
    with pytest.raises(ValueError, match=r"every worker must load the model, got ValueError: --model must be") as error:
        RayPool(load, documents, num_workers=1)
    assert "\n" not in str(error.value)


def test_a_worker_that_dies_while_it_loads_is_one_clear_line(load_llama: ModelLoader, documents: Documents) -> None:
    mortal = dying_in(load_llama, lambda num_tokens: True)
    with pytest.raises(ValueError, match=r"every worker must load the model, got ActorDiedError: ") as error:
        RayPool(mortal, documents, num_workers=1)
    assert "\n" not in str(error.value)


def test_a_cluster_that_is_busy_is_not_waited_for_without_end(load_llama: ModelLoader, documents: Documents) -> None:
    pool = RayPool(load_llama, documents, num_workers=2)
    with pytest.raises(ValueError, match=r"all 1 workers must start within 1 seconds, got 0. Is the cluster busy"):
        RayPool(load_llama, documents, num_workers=1, start_seconds=1.0)
    pool.close()
