"""Status: how far a run is, written by its driver and told by `ropewalk status`."""

import json
import math
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from results.atomic_file import write_text
from results.speed import Speed
from results.versioned_json import finite_or_none, parsed

STATUS = "status.json"
"""Name of the status in the run directory."""
SCHEMA_VERSION = 2

State = Literal["running", "stopped", "failed", "finished"]
"""What a driver said last; stopped: by its user."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How far a run was when its driver last said so; NaN where a number is not known.

    Raises:
        ValueError: The state is none that Ropewalk knows.
    """

    state: State
    """What the driver was doing."""
    reason: str | None
    """Why it stopped or failed, in one line; None elsewhere."""
    model: str
    """The model, as its user named it."""
    original_length: int
    """Pre-training window, tokens."""
    target_length: int
    """Window that is searched for, tokens."""
    phase: str
    """Part of the run: formulas, a generation, the held-out documents."""
    num_candidates: int
    """Candidates measured, formulas included."""
    total_candidates: int
    """Candidates of the whole run."""
    num_documents: int
    """Documents measured, each time anew for each candidate; failures included."""
    total_documents: int
    """Documents of the whole run, about."""
    best_perplexity: float
    """Lowest perplexity on the search documents so far."""
    best_method: str | None
    """Method of that candidate."""
    documents_per_second: float
    """Speed, all workers together."""
    utilisation: float
    """Part of the workers' time that went into documents, 0..1."""
    num_workers: int
    """Workers that can score."""
    num_retries: int
    """Tasks that were given out again after a worker was lost or raised."""
    num_failed: int
    """Measurements that are failures."""
    seconds: float
    """Wall time of the run so far."""
    seconds_left: float
    """Wall time that is left, about."""
    updated: str
    """When this was written down, UTC, ISO 8601."""
    speed: Speed = field(default_factory=Speed)
    """What the workers computed."""

    def __post_init__(self) -> None:
        """Refuse a state that no reader would know."""
        if self.state not in get_args(State):
            raise ValueError(f"a status must have a state of {', '.join(get_args(State))}, got {self.state!r}")

    def to_json(self) -> str:
        """Return the status as strict JSON, in which null stands for NaN and infinity.

        Returns:
            An object with `schema_version` and one key per field, indented, ending in a line break.
        """
        values = {key: finite_or_none(value) for key, value in asdict(self).items()}
        values |= {"speed": self.speed.to_record()}
        return json.dumps({"schema_version": SCHEMA_VERSION, **values}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunStatus":
        """Return the status that `to_json` wrote.

        Args:
            text: JSON.

        Returns:
            The status; NaN where a number is null. One of version 1 says nothing of the speed.

        Raises:
            ValueError: text is no JSON, or has another schema version, other keys, or values of other types.
        """
        document = {"speed": None, **parsed(text, kind="status", versions=(1, SCHEMA_VERSION))}
        missing = sorted({field.name for field in fields(cls)} - set(document))
        unknown = sorted(set(document) - {field.name for field in fields(cls)})
        if missing or unknown:
            raise ValueError(
                f"a status must have the keys that Ropewalk writes, got one that lacks {', '.join(missing) or 'none'} "
                f"and has {', '.join(unknown) or 'none'} besides. Was the file edited?"
            )
        return cls(**{field.name: _checked(field.name, field.type, document[field.name]) for field in fields(cls)})


def write_status(folder: Path, status: RunStatus) -> None:
    """Write the status of a run, whole or not at all; the older one is replaced.

    Args:
        folder: Run directory.
        status: What it will hold.

    Raises:
        OSError: The folder is not writable, or the disk is full.
    """
    write_text(folder / STATUS, status.to_json())


def read_status(folder: Path) -> RunStatus:
    """Return what the driver of a run said last.

    Args:
        folder: Run directory.

    Raises:
        ValueError: The folder has no status, or one that cannot be read.
    """
    try:
        text = (folder / STATUS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise ValueError(
            f"run directory {folder} must have a {STATUS}, got: {reason}. Give the folder of a run that was started."
        ) from error
    try:
        return RunStatus.from_json(text)
    except ValueError as error:
        raise ValueError(f"{folder / STATUS}: {error}") from error


def describe(status: RunStatus, *, alive: bool, path: str | Path, extra: str = "") -> str:
    """Return a status as lines for a terminal.

    Args:
        status: What the driver said last.
        alive: Whether a driver works on the run now, see `is_locked`.
        path: Run directory, as the user can give it again.
        extra: Options that taking the run up needs besides, quoted for a shell.

    Returns:
        Aligned lines of plain text without a line break at the end; the last one says how to go on where the run
        is not finished and nobody works on it.
    """
    total = status.total_documents
    share = f" of {total} ({status.num_documents / total:.1%})" if total else ""
    best = f"perplexity {status.best_perplexity:.4f}" + (f", {status.best_method}" if status.best_method else "")
    busy = "" if math.isnan(status.utilisation) else f", workers busy {status.utilisation:.0%} of the time"
    left = "" if math.isnan(status.seconds_left) else f", about {_duration(status.seconds_left)} left"
    at_work = alive and status.state == "running"
    lines = {
        "run": str(path),
        "state": _state(status, alive=alive),
        "model": f"{status.model}, {status.original_length} to {status.target_length} tokens",
        "candidates": f"{status.num_candidates} of {status.total_candidates}",
        "documents": f"{status.num_documents}{share}, {status.num_failed} failed",
        "best": "none yet" if math.isnan(status.best_perplexity) else best,
        "speed": f"{status.documents_per_second:.3g} documents/s{busy}",
        "computing": status.speed.computing,
        "memory": status.speed.memory,
        "workers": f"{_count(status.num_workers, 'worker')}, {_count(status.num_retries, 'retry', 'retries')}",
        "time": f"{_duration(status.seconds)}{left if at_work else ''}",
        "updated": status.updated,
    }
    if math.isnan(status.documents_per_second):
        del lines["speed"]
    told = [f"{name:<12}{value}" for name, value in lines.items() if value]
    if not alive and status.state != "finished":
        told.append(f"resume with: ropewalk search --resume --run-dir {shlex.quote(str(path))} {extra}".rstrip())
    return "\n".join(told)


def _state(status: RunStatus, *, alive: bool) -> str:
    reason = f": {status.reason}" if status.reason else ""
    if status.state == "running":
        return f"running, {status.phase}" if alive else f"killed, {status.phase}: no driver works on it any more"
    if alive and status.state != "finished":
        return f"being taken up again, was {status.state}{reason}"
    return f"{status.state}{reason}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _checked(name: str, kind: object, value: object) -> Any:
    if kind is Speed:
        return Speed.from_record(value)
    if kind is float:
        value = math.nan if value is None else value
        value = float(value) if type(value) is int else value
    accepted: dict[object, tuple[type, ...]] = {int: (int,), float: (float,), str | None: (str, type(None))}
    if type(value) not in accepted.get(kind, (str,)):
        raise ValueError(f"a status must have another kind of value as its {name}, got {value!r}. Was the file edited?")
    return value
