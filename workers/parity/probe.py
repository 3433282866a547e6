"""What an engine is asked, and what it answers: both cross a process border as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple, Self


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One start of an engine, and the inputs that it then rotates, in their order."""

    root: str
    """Folder of the engine's package, the one that holds its `__init__.py`."""
    config: Mapping[str, object]
    """config.json as the engine finds it."""
    overrides: Mapping[str, object]
    """What the command line replaces in it; empty where the engine reads config.json alone."""
    rotary_dim: int
    """Rotated dimensions per head."""
    server_length: int
    """Longest input that the engine is started for, tokens."""
    inputs: tuple[tuple[int, ...], ...]
    """Positions to look at, ascending; an input's last one is its last token's."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the probe that `to_json` wrote.

        Args:
            text: JSON.
        """
        fields = json.loads(text)
        fields["inputs"] = tuple(map(tuple, fields["inputs"]))
        return cls(**fields)

    def to_json(self) -> str:
        """Return the probe as JSON."""
        return json.dumps(asdict(self))


class Rotation(NamedTuple):
    """What one input's positions are rotated by; N positions, P frequency pairs."""

    cos: list[list[float]]
    """Shape (N, P), with the attention temperature in it."""
    sin: list[list[float]]
    """Shape (N, P), likewise."""
    inv_freq: list[float] | None = None
    """Radians per token, shape (P,), where the engine shows them; else they follow from position 1."""
    rounding: float = 0.0
    """Largest error of a table in lower precision than float32."""
