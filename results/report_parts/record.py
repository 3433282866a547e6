"""What a report knows of a run: all that its directory holds, read once and checked."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from results.measurement import candidate_key
from results.run_directory import RunDirectory
from results.run_lock import is_locked
from results.status import RunStatus, read_status
from results.store import read_measurements
from results.summary import MethodResult, Summary
from rope.factors import RescaleFactors


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A formula or a searched candidate as the study tells of it."""

    key: str
    """Content key, by which its measurements are found."""
    method: str
    """Its method."""
    values: tuple[float, ...] | None
    """Rescale factors, fast pairs first; None where the study keeps other parameters."""
    attention_temperature: float
    """Multiplies cos and sin."""
    critical_dim: int | None
    """Frequency pair from which on the factors were free; None where the method knows none."""
    perplexity: float
    """On the search documents that it was measured on; NaN for what failed or is not finished."""
    is_searched: bool
    """Whether a sampler proposed it in the course of the search; finalists and formulas were not."""
    is_dropped: bool = False
    """Whether it lost a race, so that its perplexity is an estimate."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A method of the tables and plots: its result, and its factors where they are known."""

    label: str
    """Name for a reader; no other of the run has it."""
    method: str
    """The method's name."""
    key: str | None
    """Content key; None where no measurement tells of it."""
    candidate: Candidate | None
    """Its factors."""
    result: MethodResult | None
    """What it scored; None in an unfinished run."""
    perplexity: float
    """What it is ranked by: on held-out documents, on search documents in an unfinished run."""
    is_winner: bool
    """Whether it won."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its directory tells of it."""

    path: Path
    """Run directory."""
    config: Mapping[str, object]
    """Every setting of the start."""
    summary: Summary | None
    """What it found; None where it is not finished."""
    status: RunStatus | None
    """What its driver said last; None where it said nothing."""
    is_alive: bool
    """Whether a driver works on it."""
    measurements: pd.DataFrame
    """As `read_measurements`; one row at least."""
    lengths: Mapping[str, int]
    """Tokens of each document, by its id."""
    candidates: tuple[Candidate, ...]
    """In the order of the study; none where it cannot be read."""
    factors: RescaleFactors | None
    """The winner."""
    provenance: Mapping[str, object]
    """With what, where and when; empty where it is not finished."""
    notes: tuple[str, ...] = ()
    """What could not be read, for the reader."""

    @property
    def split(self) -> str:
        """The documents that methods are compared on."""
        return "search" if self.summary is None else "heldout"

    @cached_property
    def losses(self) -> pd.DataFrame:
        """Measurements of `split` at the target length, with the column `loss`: nats per token, NaN for a failure."""
        frame = self.measurements[self.measurements["split"] == self.split]
        target_length = self.config.get("target_length")
        frame = frame[frame["document"].map(lambda document: self.lengths.get(document) == target_length)]
        return frame.assign(loss=frame["sum_nll"] / frame["num_tokens"].where(frame["num_tokens"] > 0))

    @cached_property
    def shown(self) -> tuple[Shown, ...]:
        """The methods, lowest perplexity first, those without one last."""
        found = self._of_summary(self.summary) if self.summary is not None else self._of_study()
        return tuple(sorted(found, key=lambda one: math.inf if math.isnan(one.perplexity) else one.perplexity))

    @property
    def one_per_method(self) -> tuple[Shown, ...]:
        """The winner, then the best of every other method, in the order of `shown`."""
        ranked = sorted(self.shown, key=lambda one: not one.is_winner)
        first: dict[str, Shown] = {}
        for one in ranked:
            first.setdefault(one.method, one)
        return tuple(first.values())

    def _of_summary(self, summary: Summary) -> list[Shown]:
        perplexities = self._perplexities()
        by_key = {one.key: one for one in sorted(self.candidates, key=lambda one: one.values is not None)}
        winner_key = None if self.factors is None else candidate_key(self.factors)
        taken: set[str] = set()
        labels = _labels([(result.name, result.attention_temperature) for result in summary.methods])
        found = []
        for label, result in zip(labels, summary.methods, strict=True):
            is_winner = result is summary.winning_result
            key = winner_key if is_winner and winner_key else _matching(result, by_key, perplexities, taken)
            taken |= {key} if key else set()
            found.append(
                Shown(
                    label=label,
                    method=result.name,
                    key=key,
                    candidate=self._candidate(key, by_key, is_winner=is_winner),
                    result=result,
                    perplexity=result.heldout_perplexity,
                    is_winner=is_winner,
                )
            )
        return found

    def _candidate(self, key: str | None, by_key: Mapping[str, Candidate], *, is_winner: bool) -> Candidate | None:
        factors = self.factors
        if is_winner and factors is not None:
            return Candidate(
                key=candidate_key(factors),
                method=factors.method,
                values=factors.values,
                attention_temperature=factors.attention_temperature,
                critical_dim=factors.critical_dim,
                perplexity=math.nan,
                is_searched=False,
            )
        return None if key is None else by_key.get(key)

    def _of_study(self) -> list[Shown]:
        best: dict[str, Candidate] = {}
        for one in self.candidates:
            if not math.isnan(one.perplexity):
                rival = best.setdefault(one.method, one)
                best[one.method] = min(rival, one, key=lambda each: (each.is_dropped, each.perplexity))
        return [
            Shown(
                label=one.method,
                method=one.method,
                key=one.key,
                candidate=one,
                result=None,
                perplexity=one.perplexity,
                is_winner=False,
            )
            for one in best.values()
        ]

    def _perplexities(self) -> dict[str, float]:
        groups = self.losses.groupby("candidate")["loss"]
        means = {str(key): float(group.to_numpy().mean()) for key, group in groups}
        with np.errstate(over="ignore"):
            return {key: float(np.exp(mean)) for key, mean in means.items()}


def read_record(path: Path, *, candidates: Sequence[Candidate] = (), notes: Sequence[str] = ()) -> RunRecord:
    """Return what a run directory holds; nothing in it is changed.

    Args:
        path: Run directory, finished or not.
        candidates: Those of its study, which another reads.
        notes: What could not be read of it, for the reader.

    Raises:
        ValueError: The folder holds no run, nothing was measured in it yet, or a file is damaged or of another
            version of Ropewalk.
        OSError: A file cannot be read.
    """
    if not RunDirectory.holds_run(path):
        raise ValueError(
            f"{path} must be a run directory, got {'a folder without a run' if path.is_dir() else 'no folder'}. "
            "Give the folder that `ropewalk search` printed."
        )
    config = RunDirectory.read_config(path)
    measurements = read_measurements(path)
    if measurements.empty:
        raise ValueError(
            f"{path} must hold the measurements of a search, got an empty run. Wait for its first documents, or give "
            "another folder."
        )
    summary, factors, provenance = (_text(path / name) for name in ("summary.json", "factors.json", "provenance.json"))
    documents = _text(path / "documents.json")
    try:
        return RunRecord(
            path=path,
            config=config,
            summary=None if summary is None else Summary.from_json(summary),
            status=read_status(path) if (path / "status.json").is_file() else None,
            is_alive=is_locked(path),
            measurements=measurements,
            lengths=_lengths(documents),
            candidates=tuple(candidates),
            factors=None if summary is None or factors is None else RescaleFactors.from_json(factors),
            provenance={} if provenance is None else _mapping(json.loads(provenance)),
            notes=tuple(notes),
        )
    except ValueError as error:
        raise ValueError(f"{error} (in {path})") from error


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError("provenance.json must be a JSON object, got something else. Restore it.")
    return value


def _lengths(documents: str | None) -> Mapping[str, int]:
    try:
        return {str(record["id"]): int(record["length"]) for record in json.loads(documents or "")}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError("documents.json must be what the run wrote, got something else. Restore it.") from error


def _labels(methods: Sequence[tuple[str, float]]) -> list[str]:
    """Return a name for each method and temperature, no two alike, as short as that allows."""
    names = [name for name, _ in methods]
    labels = [f"{name}, temp. {warmth:.4g}" if names.count(name) > 1 else name for name, warmth in methods]
    return [
        f"{label} ({labels[: place + 1].count(label)})" if labels.count(label) > 1 else label
        for place, label in enumerate(labels)
    ]


def _matching(
    result: MethodResult, by_key: Mapping[str, Candidate], perplexities: Mapping[str, float], taken: set[str]
) -> str | None:
    """Return the key of the candidate that a result is of: name and temperature agree, and what it scored."""
    able = [
        one.key
        for one in by_key.values()
        if (one.method, one.attention_temperature) == (result.name, result.attention_temperature)
        and one.key in perplexities
        and one.key not in taken
    ]
    # several finalists of one temperature: by their loss, which the summary keeps to the last digit
    wanted = result.heldout_perplexity
    near = [key for key in able if math.isclose(perplexities[key], wanted, rel_tol=1e-9)]
    failed = [key for key in able if not math.isfinite(perplexities[key]) and not math.isfinite(wanted)]
    return next(iter(near + failed), None)
