"""Fine-tuning by several processes on a Ray cluster: Ray Train places them, and replaces what dies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from results.atomic_file import write_text
from rope.factors import RescaleFactors
from workers.cluster import check_room, connect
from workers.scorer import ClusterError, failure_reason
from workers.tuning.packs import Pack
from workers.tuning.trainer import TrainingResult, run_checkpoints, train
from workers.tuning.training_config import TrainingConfig
from workers.tuning.window_model import TrainableModel

RAY_NAME = "ray"
"""Folder of Ray Train's own files, in that of the run."""
REFUSAL_NAME = "refusal.txt"
"""Where a worker says what no other worker could do better; those that replace it only read it."""


@dataclass(frozen=True, kw_only=True)
class TrainingWorkers:
    """Processes that train together.

    Raises:
        ValueError: There are none.
    """

    num_workers: int
    """How many."""
    gpus_per_worker: int = 0
    """GPUs of each: 1, or 0 for a CPU."""
    cpus_per_worker: float = 1.0
    """CPUs of each."""
    max_failures: int = 3
    """How often they are started again from the newest checkpoint after one of them, or its node, died."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.num_workers}. Correct it.")
        if self.gpus_per_worker not in (0, 1):
            raise ValueError(f"--gpus-per-worker must be 0 or 1 for training, got {self.gpus_per_worker}. Correct it.")


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A call of `train` that can be sent to a worker; its fields are that function's arguments where not said."""

    load: Callable[[], TrainableModel]
    """Returns the model; called in each worker."""
    make_packs: Callable[[], Sequence[Pack]]
    """Returns the stream; likewise."""
    factors: RescaleFactors
    config: TrainingConfig
    folder: Path
    """On a disk that all nodes see; absolute."""
    save_to: Path
    """Likewise."""
    micro_batch_size: int = 1
    identity: Mapping[str, object] | None = None
    device: str = "auto"

    def run(self, *, resume: bool, progress: bool) -> TrainingResult:
        """Train in this process.

        Args:
            resume, progress: As `train`.
        """
        return train(
            self.load(),
            self.make_packs(),
            self.factors,
            self.config,
            folder=self.folder,
            save_to=self.save_to,
            micro_batch_size=self.micro_batch_size,
            identity=self.identity,
            resume=resume,
            device=self.device,
            progress=progress,
        )


def train_on_cluster(job: TrainingJob, workers: TrainingWorkers, *, resume: bool = False) -> TrainingResult:
    """Train on the Ray cluster that RAY_ADDRESS names, else on one here; the curve is that of a single process.

    When a worker dies, all of them are started again and go on from the newest complete checkpoint.

    Args:
        job: What to train.
        workers: How many, and on what.
        resume: Whether to go on from the newest complete checkpoint, if there is one.

    Returns:
        Steps and seconds; its first step is the first one of all workers, before any of them died.

    Raises:
        ValueError: As `train`; there is no cluster, or it has no room.
        ClusterError: Workers died more often than allowed, or could not write.
    """
    began = monotonic()
    found = run_checkpoints(job.folder, job.factors, job.config, job.identity).starting_point(resume=resume)
    refusal = job.folder / REFUSAL_NAME
    refusal.unlink(missing_ok=True)
    is_own = connect()
    try:
        check_room(workers.num_workers, {"CPU": workers.cpus_per_worker, "GPU": float(workers.gpus_per_worker)})
        _fit(job, workers)
    finally:
        if is_own:
            ray.shutdown()
    if refusal.is_file():
        raise ValueError(refusal.read_text(encoding="utf-8"))
    first_step = (found.step if found else 0) + 1
    return TrainingResult(num_steps=job.config.num_steps, first_step=first_step, seconds=monotonic() - began)


def _fit(job: TrainingJob, workers: TrainingWorkers) -> None:
    trainer = TorchTrainer(
        partial(_train_here, job),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker={"CPU": workers.cpus_per_worker, "GPU": float(workers.gpus_per_worker)},
        ),
        run_config=RunConfig(
            name=RAY_NAME,
            storage_path=str(job.folder),
            failure_config=FailureConfig(max_failures=workers.max_failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        reasons = "; ".join(f"worker {rank}: {failure_reason(cause)}" for rank, cause in _causes(error))
        raise ClusterError(
            f"training must survive with {workers.max_failures} failures, got one more, the last: "
            f"{reasons or failure_reason(error)}. Complete checkpoints are in {job.folder}; resume."
        ) from error


def _causes(error: TrainingFailedError) -> list[tuple[int, Exception]]:
    return sorted(getattr(error, "worker_failures", {}).items())


def _train_here(job: TrainingJob) -> None:
    """Train in a worker; write down why not where no other worker could either."""
    refusal = job.folder / REFUSAL_NAME
    if refusal.is_file():
        return
    try:
        job.run(resume=True, progress=False)
    except ValueError as error:
        write_text(refusal, str(error))
        raise  # the others may wait for this worker's next message: only its death ends them
