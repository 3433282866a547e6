"""The device and the precision in which a run's workers compute."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from results.run_directory import RunDirectory
from search.config import SearchConfig
from workers.precision import DTYPES, Precision, choose_precision

logger = logging.getLogger(__name__)


def with_precision(config: SearchConfig, run_dir: Path) -> SearchConfig:
    """Return the configuration with a precision in place of auto.

    The driver chooses, once: all workers must measure the same model, also those that join later from other machines,
    and a run that is taken up must go on with the one that it began with.

    Args:
        config: The whole search.
        run_dir: Where the run's results go; it may hold a run to take up.

    Returns:
        The configuration; its dtype is what the user named, what the run in the folder has, or what is fastest.
    """
    if config.dtype != "auto":
        return config
    on_gpus = config.gpus_per_worker > 0 and config.device == "auto"
    device = "cuda" if on_gpus else device_of_workers(config)
    return replace(config, dtype=resolved_precision(config.dtype, device, run_dir))


def resolved_precision(dtype: Literal["auto"] | Precision, device: str, run_dir: Path) -> Precision:
    """Return a precision; for auto that of the run in the folder, else what the device is fast with, which is said.

    Args:
        dtype: What the user asked for.
        device: As `choose_precision`.
        run_dir: Where results go; it may hold a run to take up.
    """
    if dtype != "auto":
        return dtype
    before = RunDirectory.read_config(run_dir).get("dtype") if RunDirectory.holds_run(run_dir) else None
    if before in DTYPES:  # what holds no precision is another program's, and refused as such
        return cast(Precision, before)
    choice = choose_precision(device)
    logger.info("weights and activations are %s: %s", *choice)
    return choice.precision


def device_of_workers(config: SearchConfig) -> str:
    """Return where each worker's model runs, as `load_model` takes it.

    Args:
        config: The whole search.
    """
    # Ray hides no GPU from a worker that asked for none
    without_gpu = config.workers > 0 and config.gpus_per_worker == 0 and config.device == "auto"
    return "cpu" if without_gpu else config.device
