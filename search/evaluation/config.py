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
    """Tasks by name, with commas between them; default: all but passkey_window; none with --harness."""
    lengths: str
    """Tokens of prompt and answer together, several with commas between them."""
    num_samples: int = 10
    """Samples of each task and length; of the task niah_grid, of each of its depths too."""
    depths: str = "0,0.25,0.5,0.75,1"
    """Depths of the task niah_grid, 0 to 1, with commas between them."""
    num_texts: int = 4
    """Texts of perplexity and retention, stretches of the held-out part of --corpus."""
    text_length: int | None = None
    """Tokens of each text of perplexity; default: twice the longest of the lengths."""
    stride: int | None = None
    """Tokens from one window of perplexity to the next; default: a quarter of the window."""
    harness: str = ""
    """Tasks of lm-evaluation-harness by name, with commas between them; needs the extra eval."""
    harness_tasks: str | None = None
    """Folder of task files of lm-evaluation-harness, for a machine without the hub."""
    harness_limit: int | None = None
    """Most samples of each of these tasks; default: all."""
    effective_threshold: float = 85.6
    """Percent that RULER's tasks must reach in the mean at an effective length; default: RULER's."""
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
        for name in ("factors", "methods", "tasks", "lengths", "depths", "harness"):
            given = _words(getattr(self, name))
            if len({int(word) if name == "lengths" else word for word in given}) < len(given):
                raise ValueError(f"--{name} must be distinct, got {', '.join(given)}. Drop what is there twice.")
        if not _are_depths(_words(self.depths)):
            raise ValueError(f"--depths must be distinct numbers from 0 to 1, got {self.depths!r}. Write 0,0.5,1.")
        for name in ("harness_tasks", "harness_limit"):
            if getattr(self, name) is not None and not self.harness_names:
                raise ValueError(f"--{name.replace('_', '-')} must come with --harness, got it alone. Name its tasks.")
        if not _words(self.factors) and not _words(self.methods):
            raise ValueError("an evaluation must have --factors or --methods, got neither. Give one of them.")
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {self.seed}. Raise it.")
        for name in ("num_samples", "batch_size", "num_texts", "text_length", "stride", "harness_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}. Raise it.")

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
    def harness_names(self) -> list[str]:
        """Tasks of lm-evaluation-harness."""
        return _words(self.harness)

    @property
    def token_lengths(self) -> list[int]:
        """Lengths, tokens."""
        return [int(word) for word in _words(self.lengths)]

    @property
    def needle_depths(self) -> list[float]:
        """Depths of the task niah_grid, 0 to 1."""
        return [float(word) for word in _words(self.depths)]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _are_depths(words: list[str]) -> bool:
    try:
        depths = [float(word) for word in words]
    except ValueError:
        return False
    # As the ids of samples write them
    are_distinct = len({f"{depth:g}" for depth in depths}) == len(depths)
    return bool(depths) and are_distinct and all(0 <= depth <= 1 for depth in depths)
