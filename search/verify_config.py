"""Everything that one verification needs; the command line is read into it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """A comparison of serving engines' rotation with Ropewalk's; ends with 1 where one was found to differ, else 0.

    Raises:
        ValueError: The same engine is named twice.
    """

    factors: str
    """File of factors, or a run directory that holds a factors.json."""
    model: str | None = None
    """Folder, .gguf file, or hub id in the local cache, for the factors' own architecture, and for logits where it has
    weights; default: a made-up Llama, and a made-up Phi-3 for ONNX Runtime GenAI."""
    mode: Literal["dual", "pinned"] = "dual"
    """How the factors are exported."""
    engines: str = ""
    """Engines by name, with commas between them; default: all."""
    packages: str | None = None
    """Folder into which engines' wheels were unzipped, to be verified without installing them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model that transformers runs for its logits."""
    device: str = "cpu"
    """Where it runs: auto, cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        """Refuse an engine that is named twice."""
        names = self.engine_names
        if len(set(names)) < len(names):
            raise ValueError(f"--engines must be distinct, got {', '.join(names)}. Drop what is there twice.")

    @property
    def engine_names(self) -> list[str]:
        """Engines by name; empty for all."""
        return [word.strip() for word in self.engines.split(",") if word.strip()]
