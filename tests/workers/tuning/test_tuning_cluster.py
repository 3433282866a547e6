"""Several processes train as one does: copies, shards, and Ray's workers, of which one dies."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from results.tuning import read_training_log
from tests.workers.tuning import runs
from tests.workers.tuning.processes import together
from tests.workers.tuning.runs import REFERENCE, RandomPacks, curve, factors, run, small
from workers.tuning.cluster import TrainingJob, TrainingWorkers, train_on_cluster
from workers.tuning.packs import Pack
from workers.tuning.window_model import load_trainable

ROUNDING = 2e-4
"""Relative. Two processes sum a step's gradients in another order; six steps of AdamW, which divides by the root of the
second moment, make 1e-7 of that up to some 1e-5."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a single process."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder, small())
    return folder


def agree(folder: Path, alone: Path) -> None:
    """The rows of two runs are the same up to rounding."""
    found, expected = curve(folder), curve(alone)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row[2:] == pytest.approx(other[2:], rel=ROUNDING)
    tokens = [list(read_training_log(path)["num_tokens"]) for path in (folder, alone)]
    assert tokens[0] == tokens[1]


def same_weights(folder: Path, alone: Path) -> None:
    """Plain transformers loads both; a weight that lies near the middle of two of bfloat16 may go either way."""
    models = [AutoModelForCausalLM.from_pretrained(path / "model", dtype=torch.float32) for path in (folder, alone)]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-3)
    assert models[0].config.to_dict() | {"_name_or_path": ""} == models[1].config.to_dict() | {"_name_or_path": ""}


def test_two_processes_with_copies_give_the_curve_of_one(alone: Path, tmp_path: Path) -> None:
    together(run, (tmp_path, small()), num_processes=2, seconds=100)
    agree(tmp_path, alone)
    same_weights(tmp_path, alone)


def test_two_processes_with_shards_give_the_curve_of_one_and_resume_from_their_checkpoint(
    alone: Path, tmp_path: Path
) -> None:
    together(run, (tmp_path, small(shard=True)), num_processes=2, seconds=100)
    agree(tmp_path, alone)
    same_weights(tmp_path, alone)
    last = tmp_path / "checkpoints" / "checkpoint-6"
    assert len(list((last / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2, "each process writes its share"
    (last / "complete.json").unlink()
    before = curve(tmp_path)
    together(partial(run, resume=True), (tmp_path, small(shard=True)), num_processes=2, seconds=100)
    for row, other in zip(curve(tmp_path), before, strict=True):
        assert row[:2] == other[:2]
        assert row[2:] == pytest.approx(other[2:], rel=ROUNDING)


def test_micro_batches_that_do_not_divide_among_the_processes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="micro_batches_per_step must be a multiple of the 3 processes / 1 that share"):
        run(tmp_path, small())


def test_workers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="--workers must be at least 1, got 0"):
        TrainingWorkers(num_workers=0)
    with pytest.raises(ValueError, match="--gpus-per-worker must be 0 or 1 for training, got 2"):
        TrainingWorkers(num_workers=1, gpus_per_worker=2)


class DeadlyPacks(RandomPacks):
    """Who reads its pack 14, of step 4, dies, once."""

    def __init__(self, num_packs: int, trace: Path) -> None:
        super().__init__(num_packs)
        self._trace = trace

    def __getitem__(self, index: int) -> Pack:  # type: ignore[override]
        if index == 14 and not self._trace.exists():
            self._trace.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., TrainingJob]:
    """Makes the job of `run`, with other packs."""
    for module in (runs, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]

    def made(make_packs: Callable[[], Sequence[Pack]]) -> TrainingJob:
        return TrainingJob(
            load=partial(load_trainable, str(REFERENCE)),
            make_packs=make_packs,
            factors=factors(),
            config=small(),
            folder=tmp_path,
            save_to=tmp_path / "model",
            device="cpu",
        )

    return made


@pytest.mark.slow  # Ray starts two workers, each of which imports torch and transformers, and again
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_a_ray_worker_that_dies_is_replaced_and_the_curve_is_that_of_one_process(
    alone: Path, tmp_path: Path, job: Callable[..., TrainingJob]
) -> None:
    trace = tmp_path / "died"
    result = train_on_cluster(job(partial(DeadlyPacks, 100, trace)), TrainingWorkers(num_workers=2, cpus_per_worker=1))
    assert trace.exists()
    assert (result.num_steps, result.first_step) == (6, 1)
    agree(tmp_path, alone)
    same_weights(tmp_path, alone)


@pytest.mark.slow  # as above
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_what_no_other_worker_could_do_better_is_one_line(tmp_path: Path, job: Callable[..., TrainingJob]) -> None:
    with pytest.raises(ValueError, match="the stream must have 24 packs for 6 steps of 4 x 1, got 20"):
        train_on_cluster(job(partial(RandomPacks, 20)), TrainingWorkers(num_workers=2, cpus_per_worker=1))
