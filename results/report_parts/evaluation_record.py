"""What a report knows of an evaluation: all that its directory holds, read once and checked."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from results.evaluation import (
    CONTENDERS,
    HARNESS,
    RETENTION,
    SCORES,
    TEXT_LOSSES,
    HarnessScore,
    Retention,
    SampleScore,
    TextLoss,
)
from results.measurement import candidate_key
from results.report_parts.record import Candidate, Shown
from results.row_store import Row, lines_path, read_rows, table_path
from results.run_directory import CONFIG, CONFIG_HASH, RunDirectory
from results.run_lock import is_locked
from rope.factors import RescaleFactors

KINDS: Mapping[str, type[Row]] = {
    SCORES: SampleScore,
    TEXT_LOSSES: TextLoss,
    RETENTION: Retention,
    HARNESS: HarnessScore,
}
"""The rows of an evaluation, by the names of their files."""
MEASURES = "samples_sha256"
"""Setting that lists what an evaluation measures; no search has it."""
PROVENANCE = "provenance.json"
"""File with the provenance of the last process that measured, and under "earlier" a list of those before it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """An evaluation as its directory tells of it."""

    path: Path
    """Run directory."""
    config: Mapping[str, object]
    """Every setting of the start."""
    is_finished: bool
    """Whether everything that was asked for was measured."""
    is_alive: bool
    """Whether a process works on it."""
    scores: pd.DataFrame
    """Fields of `SampleScore`; empty where nothing was answered, as the other three."""
    text_losses: pd.DataFrame
    """Fields of `TextLoss`."""
    retention: pd.DataFrame
    """Fields of `Retention`."""
    harness: pd.DataFrame
    """Fields of `HarnessScore`."""
    factors_of: Mapping[str, RescaleFactors]
    """Factors by contender; empty where the run does not hold them."""
    provenance: Mapping[str, object]
    """With what and when, as far as it was written down; the hash of the configuration always. Of several processes the
    last one's, with those before it under "earlier"."""

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """Content keys by contender, in the order in which the run's user named them."""
        given = self.config.get("contenders")
        found = {str(name): str(key) for name, key in given.items()} if isinstance(given, Mapping) else {}
        for frame in (self.scores, self.text_losses, self.retention, self.harness):
            for name, key in zip(frame["contender"], frame["candidate"], strict=True):
                found.setdefault(str(name), str(key))
        return found

    @property
    def contenders(self) -> tuple[str, ...]:
        """Names, in the order in which the run's user gave them."""
        return tuple(self.keys)

    @property
    def original_length(self) -> int | None:
        """The model's window, tokens; None where neither factors nor settings tell it."""
        for factors in self.factors_of.values():
            return factors.original_length
        given = self.config.get("original_length")
        return given if isinstance(given, int) else None

    def is_beyond(self, contender: str, length: int) -> bool:
        """Return whether a length is longer than a contender's factors are known to be for.

        Args:
            contender: Its name.
            length: Tokens.
        """
        factors = self.factors_of.get(contender)
        return factors is not None and length > factors.target_length

    @property
    def with_short(self) -> tuple[str, ...]:
        """The contenders that are known to have short factors."""
        return tuple(name for name, factors in self.factors_of.items() if factors.short is not None)

    @property
    def factors(self) -> RescaleFactors | None:
        """Factors of any contender, for the model's geometry."""
        return next(iter(self.factors_of.values()), None)

    @property
    def one_per_method(self) -> tuple[Shown, ...]:
        """The contenders whose factors are known."""
        return tuple(_shown(name, self.factors_of[name]) for name in self.contenders if name in self.factors_of)


def is_evaluation(path: Path) -> bool:
    """Return whether a folder holds an evaluation, finished or not.

    Args:
        path: Run directory.

    Raises:
        ValueError: Its configuration is damaged.
        OSError: It cannot be read.
    """
    if not RunDirectory.holds_run(path):
        return False
    has_rows = any(table_path(path, name).is_file() or lines_path(path, name).is_file() for name in KINDS)
    return has_rows or MEASURES in RunDirectory.read_config(path)


def read_evaluation(path: Path) -> EvaluationRecord:
    """Return what the directory of an evaluation holds; nothing in it is changed.

    Args:
        path: Run directory, finished or not.

    Raises:
        ValueError: The folder holds no run, nothing was measured in it yet, or a file is damaged or of another
            version of Ropewalk.
        OSError: A file cannot be read.
    """
    config = RunDirectory.read_config(path)
    frames = {name: read_rows(path, name, kind) for name, kind in KINDS.items()}
    if all(frame.empty for frame in frames.values()):
        raise ValueError(
            f"{path} must hold the rows of an evaluation, got an empty run. Wait for its first ones, or give another "
            "folder."
        )
    measures = config.get(MEASURES)
    names = list(measures) if isinstance(measures, Mapping) else [name for name in KINDS if not frames[name].empty]
    return EvaluationRecord(
        path=path,
        config=config,
        is_finished=all(table_path(path, str(name)).is_file() for name in names),
        is_alive=is_locked(path),
        scores=frames[SCORES],
        text_losses=frames[TEXT_LOSSES],
        retention=frames[RETENTION],
        harness=frames[HARNESS],
        factors_of=_factors(path / CONTENDERS),
        provenance=_provenance(path),
    )


def earlier_processes(path: Path) -> list[Mapping[str, object]]:
    """Return the provenance of every process that measured something in an evaluation, the first one first.

    Args:
        path: Run directory.

    Raises:
        ValueError: It is damaged.
        OSError: It cannot be read.
    """
    known = _read_provenance(path)
    before = known.pop("earlier", [])
    assert isinstance(before, list)
    return [*before, known] if known else []


def _factors(path: Path) -> Mapping[str, RescaleFactors]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("it must be a JSON object, got something else. Restore it.")
        return {str(name): RescaleFactors.from_json(json.dumps(value)) for name, value in document.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _provenance(path: Path) -> Mapping[str, object]:
    digest = (path / CONFIG_HASH).read_text(encoding="utf-8").split()
    return {"hashes": {CONFIG: digest[0] if digest else ""}} | _read_provenance(path)


def _read_provenance(path: Path) -> dict[str, object]:
    file = path / PROVENANCE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("earlier", []), list):
        raise ValueError(f"{file} must be a JSON object, got something else. Restore it.")
    return found


def _shown(name: str, factors: RescaleFactors) -> Shown:
    key = candidate_key(factors)
    candidate = Candidate(
        key=key,
        method=name,
        values=factors.values,
        attention_temperature=factors.attention_temperature,
        critical_dim=factors.critical_dim,
        perplexity=math.nan,
        is_searched=False,
    )
    return Shown(
        label=name, method=name, key=key, candidate=candidate, result=None, perplexity=math.nan, is_winner=False
    )
