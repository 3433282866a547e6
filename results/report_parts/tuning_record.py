"""What a report knows of a fine-tuning: its settings, its training log, and its outcome once it has one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from results.row_store import lines_path, table_path
from results.run_directory import CONFIG, CONFIG_HASH, RunDirectory
from results.run_lock import is_locked
from results.tuning import LOG_NAME, read_training_log
from results.tuning_outcome import OUTCOME, Outcome
from rope.factors import RescaleFactors

SETTINGS = ("mixture", "training")
"""Settings that a fine-tuning has, and no other run."""


@dataclass(frozen=True, kw_only=True)
class TuningRecord:
    """A fine-tuning as its directory tells of it."""

    path: Path
    """Run directory."""
    config: Mapping[str, object]
    """Every setting of the start."""
    is_alive: bool
    """Whether a process works on it."""
    log: pd.DataFrame
    """Fields of `TrainingRow`; empty where no step was taken."""
    outcome: Outcome | None
    """None where it is not finished."""
    factors: RescaleFactors | None
    """Of the long window; None where they were not written yet."""
    provenance: Mapping[str, object]
    """With what and when, as far as it was written down; the hash of the configuration always."""

    @property
    def is_finished(self) -> bool:
        """Whether the tuned model was measured."""
        return self.outcome is not None


def is_tuning(path: Path) -> bool:
    """Return whether a folder holds a fine-tuning, finished or not.

    Args:
        path: Run directory.

    Raises:
        ValueError: Its configuration is damaged.
        OSError: It cannot be read.
    """
    if not RunDirectory.holds_run(path):
        return False
    has_log = table_path(path, LOG_NAME).is_file() or lines_path(path, LOG_NAME).is_file()
    config = RunDirectory.read_config(path)
    return has_log or all(name in config for name in SETTINGS)


def read_tuning(path: Path) -> TuningRecord:
    """Return what the directory of a fine-tuning holds; nothing in it is changed.

    Args:
        path: Run directory, finished or not.

    Raises:
        ValueError: The folder holds no run, or a file is damaged or of another version of Ropewalk.
        OSError: A file cannot be read.
    """
    config = RunDirectory.read_config(path)
    outcome, factors, provenance = (path / name for name in (OUTCOME, "factors.json", "provenance.json"))
    digest = (path / CONFIG_HASH).read_text(encoding="utf-8").split()
    return TuningRecord(
        path=path,
        config=config,
        is_alive=is_locked(path),
        log=read_training_log(path),
        outcome=Outcome.from_json(outcome.read_text(encoding="utf-8")) if outcome.is_file() else None,
        factors=RescaleFactors.load(factors) if factors.is_file() else None,
        provenance={"hashes": {CONFIG: digest[0] if digest else ""}} | _object(provenance),
    )


def _object(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must be a JSON object, got something else. Restore it.")
    return found
