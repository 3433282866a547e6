"""Rows and tables of the benchmark `scoring`, and what makes a run void."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

TOLERANCES: Mapping[str, float] = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.05}
"""How far losses of the same document may be apart, nats per token, by the coarser precision of the two.

Over 30 layers, random ones and SmolLM2's own, bfloat16 was up to 0.03 away from float32; documents of another first
half are up to 0.3 away.
"""
OUT_OF_MEMORY = "out of memory"
NO_ANSWER = "no answer"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one way did at one length, or why it did not."""

    shape: str
    length: int
    way: str
    num_documents: int
    dtype: str = ""
    attention: str = ""
    seconds: tuple[float, ...] = ()
    """Wall time of all documents, for every time that they were read."""
    losses: tuple[float, ...] = ()
    peak_bytes: int = 0
    weight_bytes: int = 0
    flops: float = math.nan
    useful_flops: float = math.nan
    ceiling: float = math.nan
    """FLOP/s of a plain matmul in this precision on this device."""
    failure: str = ""

    @property
    def speed(self) -> float:
        """Documents per second, the best of all readings; NaN where there is none."""
        return self.num_documents / min(self.seconds) if self.seconds else math.nan

    @property
    def median_speed(self) -> float:
        """Documents per second, the median of all readings."""
        return self.num_documents / median(self.seconds) if self.seconds else math.nan


def disagreements(rows: Sequence[Row]) -> list[str]:
    """Return a line for each row whose losses are not those of the first row of the same documents.

    Rows of `labels` come first where there are any: they are transformers' own loss.
    """
    found = []
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.way != "labels"):
        if row.losses:
            groups[row.shape, row.length].append(row)
    for first, *others in groups.values():
        for row in others:
            tolerance = max(TOLERANCES[first.dtype], TOLERANCES[row.dtype])
            apart = max(abs(ours - theirs) for ours, theirs in zip(row.losses, first.losses, strict=False))
            if not apart <= tolerance:  # NaN too
                found.append(
                    f"void: losses of {row.shape} at {row.length} tokens must be within {tolerance:g} nats/token of "
                    f"each other, got {first.losses[0]:.4f} by {first.way} and {row.losses[0]:.4f} by {row.way} "
                    f"({row.num_documents} at once), {apart:.4f} apart. Do not compare their speeds."
                )
    return found


def breakdowns(rows: Sequence[Row]) -> list[str]:
    """Return a line for each row in which the scorer failed for another reason than memory or time."""
    failed = [row for row in rows if row.way.startswith("ropewalk") and row.failure]
    return [line(row) for row in failed if not is_too_large(row.failure)]


def is_too_large(failure: str) -> bool:
    """Return whether a document was too large for the memory, or refused for it before, or took too long."""
    return any(reason in failure for reason in (OUT_OF_MEMORY, "must fit the memory", NO_ANSWER))


def way_table(rows: Sequence[Row], device: str) -> Table:
    """Return all ways side by side."""
    found = _table(
        f"{device}: best of all readings (median in brackets); shares are of a plain matmul",
        ("shape", "tokens", "way", "precision"),
        ("tokens/s", "x labels", "GFLOP/s", "share", "useful", "GB above weights", "x labels", "loss", "- labels"),
    )
    for row in rows:
        by_labels = labels_of(row, rows)
        if not row.seconds:
            found.add_row(row.shape, str(row.length), row.way, "", row.failure[:60])
            continue
        rate = row.speed * row.flops
        found.add_row(
            row.shape,
            str(row.length),
            f"{row.way} ({row.attention})",
            row.dtype,
            f"{row.speed * row.length:,.0f} ({row.median_speed * row.length:,.0f})",
            _number(row.speed / by_labels.speed, "{:.2f}") if by_labels else "",
            f"{rate / 1e9:,.1f}",
            f"{rate / row.ceiling:.1%}",
            f"{row.speed * row.useful_flops / row.ceiling:.1%}",
            f"{row.peak_bytes / 1e9:.3f}",
            _number(row.peak_bytes / by_labels.peak_bytes, "{:.2f}") if by_labels and by_labels.peak_bytes else "",
            f"{row.losses[0]:.4f}",
            f"{row.losses[0] - by_labels.losses[0]:+.4f}" if by_labels and by_labels.losses else "",
        )
    return found


def batch_table(rows: Sequence[Row]) -> Table:
    """Return the scorer's speed by the number of documents that it is given at once."""
    found = _table(
        "documents given to the scorer at once: best of all readings (median in brackets)",
        ("shape", "tokens", "documents"),
        ("documents/s", "x one", "GFLOP/s", "share", "GB above weights"),
    )
    for row in rows:
        number = f"{row.num_documents}{'' if row.way == 'ropewalk' else ', as it chooses'}"
        if not row.seconds:
            found.add_row(row.shape, str(row.length), number, row.failure[:60])
            continue
        first = next(other for other in rows if (other.shape, other.length) == (row.shape, row.length))
        rate = row.speed * row.flops
        found.add_row(
            row.shape,
            str(row.length),
            number,
            f"{row.speed:.3f} ({row.median_speed:.3f})",
            _number(row.speed / first.speed, "{:.2f}"),
            f"{rate / 1e9:,.1f}",
            f"{rate / row.ceiling:.1%}",
            f"{row.peak_bytes / 1e9:.3f}",
        )
    return found


def labels_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the row of `labels` for the same documents, if it was measured."""
    for other in rows:
        if (other.shape, other.length, other.way) == (row.shape, row.length, "labels") and other.seconds:
            return other
    return None


def line(row: Row) -> str:
    """Return a row in words, for those who wait."""
    begin = f"{row.shape}, {row.num_documents} x {row.length} tokens, {row.way}: "
    if not row.seconds:
        return begin + row.failure
    return begin + (
        f"{row.speed * row.length:,.0f} tokens/s (best of {len(row.seconds)}), "
        f"{row.speed * row.flops / row.ceiling:.1%} of a matmul's {row.ceiling / 1e9:,.0f} GFLOP/s in {row.dtype}, "
        f"{row.peak_bytes / 1e9:.2f} GB above weights, loss {row.losses[0]:.4f}"
        f"{'; then ' + row.failure if row.failure else ''}"
    )


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    found = Table(title=title)
    for heading in (*left, *right):
        found.add_column(heading, justify="left" if heading in left else "right")
    return found


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)
