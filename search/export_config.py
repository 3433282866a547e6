"""Everything that one export needs; the command line is read into it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """An export of factors to a serving engine.

    Raises:
        ValueError: Two settings exclude each other, or one would have no effect.
    """

    factors: str
    """File of factors, or the run directory of a search."""
    to: str
    """Engine: transformers, vllm, sglang, llama.cpp, ollama, mlx, exllamav2, exllamav3, onnxruntime-genai,
    tensorrt-llm or plain."""
    out: str | None = None
    """Folder for the files; made where it is missing."""
    model: str | None = None
    """Folder or hub id of the model that they are for; for llama.cpp and ollama its .gguf file."""
    mode: Literal["dual", "pinned"] = "dual"
    """dual: short and long factors, the engine chooses; pinned: the long ones as both."""
    weights: Literal["none", "link", "copy"] = "none"
    """Whether the model's other files are put beside config.json: as links, as copies, or not."""
    short_temperature: Literal["engine", "patch"] = "engine"
    """For transformers: its one temperature for both windows, or model code with the whole window switch."""
    in_place: bool = False
    """For llama.cpp: change the GGUF file itself, without --out."""
    force: bool = False
    """Replace files that are there, and a GGUF's own scaling."""

    def __post_init__(self) -> None:
        """Refuse what would have no effect."""
        if (self.out is None) != self.in_place:
            got = "both" if self.in_place else "neither"
            raise ValueError(f"an export must have --out or --in-place, got {got}. Give one of them.")
        if self.in_place and self.to != "llama.cpp":
            raise ValueError(f"--in-place must come with --to llama.cpp, got {self.to}. Give --out.")
        if self.short_temperature == "patch" and self.to != "transformers":
            raise ValueError(f"--short-temperature patch must come with --to transformers, got {self.to}. Drop it.")
        if self.is_gguf and self.model is None:
            raise ValueError(f"--to {self.to} must come with --model, a .gguf file, got none. Give it.")
        if self.weights != "none" and (self.model is None or self.to in ("plain", "vllm", "sglang") or self.is_gguf):
            raise ValueError(
                f"--weights {self.weights} must come with --model and an engine that reads a folder, got --to {self.to}"
                f"{'' if self.model else ' without --model'}. Drop it."
            )

    @property
    def is_gguf(self) -> bool:
        """Whether the engine reads a GGUF file."""
        return self.to in ("llama.cpp", "ollama")
