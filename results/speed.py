"""Speed: how much a run computed in its workers' time, beside what their devices can do at most."""

from dataclasses import asdict, dataclass
from typing import Any

PREFIXES = ("", "k", "M", "G", "T", "P", "E")
"""Of a thousand, a million, ...; SI."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Operations, their rate and the memory that they took; None for what is not known."""

    device: str | None = None
    """Name of the workers' device; several joined by " and "."""
    document_flops: float | None = None
    """Floating point operations that the loss of one document of the target length takes."""
    flops_per_second: float | None = None
    """What a worker did while it scored, FLOP/s."""
    ceiling: float | None = None
    """What a plain matrix product does on the workers' device, FLOP/s; their mean where they differ."""
    peak_bytes: int | None = None
    """Most memory that a worker had in use."""

    @property
    def share(self) -> float | None:
        """What a worker did as a part of the ceiling."""
        if self.flops_per_second is None or not self.ceiling:
            return None
        return self.flops_per_second / self.ceiling

    @property
    def rate(self) -> str:
        """What a worker did, for people: "41.2 GFLOP/s per worker, 63% of a plain matmul"; empty if unknown."""
        if self.flops_per_second is None:
            return ""
        share = "" if self.share is None else f", {self.share:.0%} of a plain matmul"
        return f"{shown(self.flops_per_second, 'FLOP/s')} per worker{share}"

    @property
    def computing(self) -> str:
        """Operations and their rate in one line; empty if unknown."""
        needed = "" if self.document_flops is None else f"{shown(self.document_flops, 'FLOP')} per document"
        device = "" if self.device is None else f" on {self.device}"
        ceiling = "" if self.share is None or self.ceiling is None else f" ({shown(self.ceiling, 'FLOP/s')}{device})"
        return ", ".join(part for part in (needed, f"{self.rate}{ceiling}") if part)

    @property
    def memory(self) -> str:
        """The most memory in use: "1.8 GB at most in a worker"; empty if unknown."""
        return "" if self.peak_bytes is None else f"{self.peak_bytes / 1e9:.3g} GB at most in a worker"

    def to_record(self) -> dict[str, object]:
        """Return what JSON holds of it: one key per field, and `share`."""
        return {**asdict(self), "share": self.share}

    @classmethod
    def from_record(cls, record: object) -> "Speed":
        """Return the speed that `to_record` wrote.

        Args:
            record: What JSON had; None, from before there was any, for a speed of which nothing is known.

        Raises:
            ValueError: It has other keys, or values of other kinds.
        """
        if record is None:
            return cls()
        known = cls().to_record()
        if not isinstance(record, dict) or record.keys() != known.keys() or not all(map(_is_fit, record.items())):
            raise ValueError(f"a speed must have the values that Ropewalk writes, got {record!r}. Was the file edited?")
        values: dict[str, Any] = {name: value for name, value in record.items() if name != "share"}
        return cls(**values)


def shown(number: float, unit: str) -> str:
    """Return a number with three digits and the prefix that keeps it below a thousand.

    Args:
        number: At least 0.
        unit: Without a prefix.

    Example:
        >>> shown(6.138e15, "FLOP")
        '6.14 PFLOP'
    """
    rounded = float(f"{number:.3g}")  # before the prefix is chosen: 999.9 is 1 of the next
    exponent = min(len(PREFIXES) - 1, max(0, len(f"{rounded:.0f}") - 1) // 3)
    return f"{rounded / 1000**exponent:.4g} {PREFIXES[exponent]}{unit}"


def _is_fit(item: tuple[str, object]) -> bool:
    name, value = item
    kinds = {"device": str, "peak_bytes": int}.get(name, int | float)
    return value is None or (isinstance(value, kinds) and not isinstance(value, bool))
