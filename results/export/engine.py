"""What every serving engine's export is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from rope.factors import RescaleFactors

Mode = Literal["dual", "pinned"]
"""dual: short and long factors, and the engine chooses; pinned: the long factors as both, right on every engine."""


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """What an export needs to know of the model that the factors are for."""

    name: str
    """Folder, file or hub id, as the user gave it."""
    config: Mapping[str, object]
    """Its config.json as it is written, every field."""
    model_type: str
    """Its architecture, as config.json names it: "llama", "qwen2", "phi3", ..."""
    partial_rotary_factor: float | None
    """Share of each head that rotates, where it is not all of it."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an engine is given, and what its user should know."""

    files: Mapping[str, str]
    """Text files by name, to be written beside each other."""
    steps: tuple[str, ...]
    """What to type or do next, a line each; `{folder}` stands for the folder that was written."""
    notes: tuple[str, ...]
    """What the engine does otherwise than Ropewalk with these factors, a sentence each."""


Exporter = Callable[[RescaleFactors, Mode, SourceModel | None], Export]
"""Returns an engine's export; ValueError where the engine cannot express the factors or needs the model."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One row of the table of engines."""

    title: str
    """What people call it."""
    export: Exporter | None
    """How to export; None where that needs more than text (GGUF), or is not supported."""
    chooses: str
    """Which list it takes, and when."""
    loses: str
    """What is lost against Ropewalk's own window switch."""
    typed: str
    """What its user types."""
    version: str
    """The version whose source this was read in."""
    always_long: bool = False
    """Whether the long factors hold at every length, once it is started for more than the original length."""
