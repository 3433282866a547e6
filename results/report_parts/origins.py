"""With what, where and at what price a result was made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pandas as pd
import yaml

from results.report_parts.markup import counted, definitions, element, escaped, section
from results.report_parts.record import RunRecord
from results.report_parts.search_progress import num_forwards
from results.speed import Speed, shown
from results.urls import without_password


class Origin(Protocol):
    """What provenance is told of: a search or an evaluation."""

    @property
    def path(self) -> Path:
        """Run directory."""
        ...

    @property
    def config(self) -> Mapping[str, object]:
        """Every setting of the start."""
        ...

    @property
    def provenance(self) -> Mapping[str, object]:
        """As `results.provenance.Provenance` is written; entries may be missing."""
        ...


def spending_html(record: RunRecord) -> str:
    """Return what the run computed: forwards, time, operations, and how fast."""
    frame = record.measurements
    num_failed = int(frame["failure"].notna().sum())
    speed = _speed(record)
    facts = [
        ("document forwards", f"{len(frame):,}{f', {num_failed:,} of them failed' if num_failed else ''}"),
        ("search forwards", f"{num_forwards(frame):,}, a gradient counted as three"),
        ("wall time", _wall(record)),
        ("time in workers", duration(float(frame["seconds"].sum()))),
        ("accelerators", accelerator_hours(record.provenance.get("accelerators"), _seconds(record))),
        ("operations", _operations(frame)),
        ("computing", speed.computing),
        ("memory", speed.memory),
    ]
    return section("Speed and cost", definitions(facts))


def provenance_html(record: Origin) -> str:
    """Return versions, hashes, seed, hardware and command, and the whole configuration folded away."""
    known = record.provenance
    hashes, versions = _entries(known.get("hashes")), _entries(known.get("versions"))
    facts = [
        ("run directory", str(record.path)),
        ("model", str(record.config.get("model", ""))),
        ("model fingerprint", str(record.config.get("model_fingerprint", ""))),
        ("corpus", str(record.config.get("corpus") or "")),
        ("seed", str(known.get("seed", record.config.get("seed", "")))),
        ("command", str(known.get("command", ""))),
        ("started", str(known.get("started", ""))),
        ("finished", str(known.get("gathered", ""))),
        ("git commit", str(known.get("git_commit") or "")),
        ("Python", str(known.get("python", ""))),
        *versions,
        ("platform", str(known.get("platform", ""))),
        ("CPU cores", str(known.get("num_cpus", ""))),
        *((f"SHA-256 of {name}", value) for name, value in hashes),
    ]
    config = without_password(yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True))
    folded = f"<details>{element('summary', 'The whole configuration')}<pre>{escaped(config)}</pre></details>"
    return section("Provenance", definitions(facts), folded)


def duration(seconds: float) -> str:
    """Return a time for people.

    Example:
        >>> duration(56.5), duration(3725)
        ('56.5 s', '1 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{seconds / 60:.3g} min"


def accelerator_hours(names: object, seconds: float | None) -> str:
    """Return the accelerators and their hours, taken as held for the whole time.

    Args:
        names: One per device, as `results.provenance.Provenance` has them; nothing is told of anything else.
        seconds: Time; None where it is not known.
    """
    if not isinstance(names, list) or seconds is None:
        return ""
    if not names:
        return "none, 0 GPU-hours"
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return f"{kinds}: {len(names) * seconds / 3600:.3g} GPU-hours, if all were held from start to end"


def _speed(record: RunRecord) -> Speed:
    if record.summary is not None:
        return record.summary.speed
    return Speed() if record.status is None else record.status.speed


def _seconds(record: RunRecord) -> float | None:
    if record.summary is not None:
        return record.summary.seconds
    return None if record.status is None else record.status.seconds


def _wall(record: RunRecord) -> str:
    seconds = _seconds(record)
    return "" if seconds is None else duration(seconds)


def _operations(frame: pd.DataFrame) -> str:
    known = frame["flops"].dropna()
    if known.empty:
        return ""
    total = shown(float(known.sum()), "FLOP")
    missing = len(frame) - len(known)
    return total + (f", not counted in {counted(missing, 'forward')}" if missing else "")


def _entries(value: object) -> list[tuple[str, str]]:
    if not isinstance(value, Mapping):
        return []
    return [(str(name), "not installed" if entry is None else str(entry)) for name, entry in value.items()]
