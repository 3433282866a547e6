"""Training runs of the reference model that take seconds, in this process or in one that a test can kill."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from results.tuning import read_training_log
from rope.factors import RescaleFactors
from rope.methods import METHODS
from workers.tuning.packs import Pack, Window, pack
from workers.tuning.trainer import TrainingResult, train
from workers.tuning.training_config import TrainingConfig
from workers.tuning.window_model import load_trainable

REFERENCE = Path(__file__).parents[3] / "workers" / "reference" / "model"
LENGTH = 128
"""Tokens of a pack."""


class RandomPacks(Sequence[Pack]):
    """Short packs of two documents and long packs of one, in blocks; none holds token 1023."""

    def __init__(self, num_packs: int, *, block: int = 1) -> None:
        self._num_packs = num_packs
        self._block = block

    def __len__(self) -> int:
        return self._num_packs

    def __getitem__(self, index: int) -> Pack:  # type: ignore[override]
        rng = np.random.default_rng(index)
        window: Window = "short" if (index // self._block) % 2 == 0 else "long"
        cut = int(rng.integers(20, 100)) if window == "short" else 0
        sizes = [cut, LENGTH - cut] if window == "short" else [LENGTH]
        pieces = [rng.integers(2, 1023, size) for size in sizes]
        return pack(pieces, window=window, attend_across=False)


def factors() -> RescaleFactors:
    """YaRN's for four windows of the reference model."""
    return METHODS["yarn"](rotary_dim=32, base=500.0, original_length=256, target_length=1024).with_temperature(1.1)


def small(**changes: object) -> TrainingConfig:
    """Six steps of four micro-batches."""
    settings: dict[str, object] = {
        "num_steps": 6,
        "micro_batches_per_step": 4,
        "learning_rate": 1e-3,
        "warmup": 2,
        "checkpoint_steps": 2,
        "precision": "float32",
    }
    return TrainingConfig(**(settings | changes))  # type: ignore[arg-type]


def run(
    folder: Path, config: TrainingConfig, *, resume: bool = False, packs: Sequence[Pack] | None = None
) -> TrainingResult:
    """Train the reference model in a folder; the weights go to `model` in it."""
    folder.mkdir(exist_ok=True, parents=True)
    return train(
        load_trainable(str(REFERENCE)),
        packs if packs is not None else RandomPacks(10_000),
        factors(),
        config,
        folder=folder,
        save_to=folder / "model",
        resume=resume,
        device="cpu",
        progress=False,
    )


def curve(folder: Path) -> list[tuple[int, str, float, float]]:
    """Step, window, loss sum and gradient norm of every row, as they were written."""
    log = read_training_log(folder)
    return list(zip(log["step"], log["window"], log["sum_nll"], log["grad_norm"], strict=True))


if __name__ == "__main__":
    run(Path(sys.argv[1]), small(num_steps=int(sys.argv[2])), resume=True)
