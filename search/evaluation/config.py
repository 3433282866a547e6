"""Everything that one evaluation needs; YAML files and the command line are read into it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """An evaluation of factors and formulas, side by side on the same samples.

    Raises:
        ValueError: A setting is out of range, or there is nothing to evaluate.
    """

    model: str
    """Folder, .gguf file, or hub id of a model in the local cache."""
    gguf_file: str | None = None
    """Name of a GGUF file inside the folder `model`."""
    original_length: int | None = None
    """Pre-training window in tokens; default: what the model's configuration says."""
    factors: str = ""
    """Files of factors, or run directories that hold a factors.json, with commas between them."""
    methods: str = "none"
    """Formulas, for the longest of the lengths, with commas between them."""
    tasks: str = ""
    """Tasks by name, with commas between them; default: all that can be built."""
    lengths: str
    """Tokens of prompt and answer together, several with commas between them."""
    num_samples: int = 10
    """Samples of each task and length; of the task niah_grid, of each of its five depths too."""
    corpus: str | None = None
    """Text of the haystacks: file or folder; default: RULER's noise sentences, over and over, for essays too."""
    squad: str | None = None
    """SQuAD's JSON file, for RULER's qa_1."""
    hotpotqa: str | None = None
    """HotpotQA's JSON file, for RULER's qa_2."""
    prompt: Literal["base", "chat"] = "base"
    """RULER's prompts for base models, or the same through the tokenizer's chat template."""
    batch_size: int = 8
    """Samples decoded together."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of weights and activations."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    seed: int = 0
    """The one seed."""
    run_dir: str | None = None
    """Folder for the results; default: a new one below runs/. One that holds this evaluation is taken up."""

    def __post_init__(self) -> None:
        """Refuse what cannot be evaluated."""
        words = _words(self.lengths)
        if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
            raise ValueError(f"--lengths must be numbers of tokens above 0, got {self.lengths!r}. Write 4096,8192.")
        for name in ("factors", "methods", "tasks", "lengths"):
            given = _words(getattr(self, name))
            if len(set(given)) < len(given):
                raise ValueError(f"--{name} must be distinct, got {', '.join(given)}. Drop what is there twice.")
        if not _words(self.factors) and not _words(self.methods):
            raise ValueError("an evaluation must have --factors or --methods, got neither. Give one of them.")
        for name in ("num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}. Raise it.")

    @property
    def factor_files(self) -> list[str]:
        """Files or run directories."""
        return _words(self.factors)

    @property
    def method_names(self) -> list[str]:
        """Formulas by name."""
        return _words(self.methods)

    @property
    def task_names(self) -> list[str]:
        """Tasks by name; empty for all that can be built."""
        return _words(self.tasks)

    @property
    def token_lengths(self) -> list[int]:
        """Lengths, tokens."""
        return [int(word) for word in _words(self.lengths)]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
