"""Everything that one fine-tuning needs; YAML files and the command line are read into it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

import yaml

from workers.tuning.mixture_config import MixtureConfig
from workers.tuning.training_config import TrainingConfig

MAY_CHANGE = (
    "model",
    "factors",
    "data",
    "device",
    "run_dir",
    "tokens",
    "num_processes",
    "workers",
    "gpus_per_worker",
    "cpus_per_worker",
    "retries",
    "training.activation_checkpointing",
    "training.checkpoint_steps",
    "training.num_checkpoints",
    "training.log_steps",
    "training.report_to",
)
"""Settings that a run may be taken up with another value of: places, whose contents are compared by themselves, and
what the training does not depend on."""


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What is measured before and after, on documents and texts that are the same both times.

    Raises:
        ValueError: A number is out of range.
    """

    corpus: str | None = None
    """Text of which the held-out part is read, and that is no part of --data: file or folder; default: the corpus of
    the search whose run directory is given as --factors."""
    column: str | None = None
    """Column of the text in JSON lines, Parquet and datasets; default: as that search, else text."""
    prompt: Literal["ruler", "chat"] = "ruler"
    """RULER's prompt for base models, or the same through the tokenizer's chat template."""
    num_target: int = 32
    """Needle documents of the target length."""
    num_original: int = 32
    """Needle documents of the original length."""
    num_texts: int = 4
    """Stretches of text for plain perplexity and retention."""
    text_length: int | None = None
    """Tokens of each stretch; default: twice the target length."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("num_target", "num_original", "num_texts", "text_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"measure.{name} must be at least 1, got {value}. Raise it.")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A fine-tuning with mixed context windows, and the measurements before and after it.

    Raises:
        ValueError: A setting is missing or out of range, or one would have no effect.
    """

    model: str = ""
    """Folder, .gguf file, or hub id of a model in the local cache."""
    gguf_file: str | None = None
    """Name of a GGUF file inside the folder `model`."""
    original_length: int | None = None
    """Pre-training window in tokens; default: that of the search that made the factors, else what the model says."""
    factors: str = ""
    """File of factors, or run directory of a search."""
    data: str = ""
    """Documents to train on: files or folders of text, JSON lines, Parquet or saved datasets, with commas between
    them; NAME=PATH gives a source the name by which mixture.source_weights and length bins know it."""
    column: str = "text"
    """Field or column of the data that holds the text."""
    skip_unreadable: bool = False
    """Leave out files of the data that cannot be read, instead of ending."""
    tokens: str | None = None
    """Folder where tokenised data is kept, for this run and others; default: ropewalk/tokens in the user's cache."""
    num_processes: int = 1
    """Processes that read and tokenise the data."""
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    """What short and long packs are made of."""
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(num_steps=100))
    """How the model is trained on them."""
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    """What is measured before and after."""
    weights: Literal["model", "float32", "bfloat16"] = "model"
    """Precision of the saved weights; model: that of the model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of weights and activations while it is measured."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    seed: int = 0
    """The one seed: packs, documents and training follow from it."""
    workers: int = 0
    """Processes of Ray Train that train together; 0 trains in this process without Ray."""
    gpus_per_worker: int = 0
    """GPUs of each of them: 1, or 0 for a CPU."""
    cpus_per_worker: float = 1.0
    """CPUs of each of them."""
    retries: int = 3
    """How often training goes on from its last checkpoint after a worker died."""
    run_dir: str | None = None
    """Folder for the results; default: a new one below runs/. One that holds this fine-tuning is taken up."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        for name in ("model", "factors", "data"):
            if not getattr(self, name).strip():
                raise ValueError(f"a fine-tuning must have --{name}, got none. Give it, or a --config that has it.")
        for name in ("workers", "gpus_per_worker", "retries"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}.")
        if self.num_processes < 1 or not self.cpus_per_worker > 0:
            raise ValueError("--num-processes must be at least 1 and --cpus-per-worker above 0. Correct them.")
        self._check_useless()
        if not self.sources:
            raise ValueError(f"--data must name files or folders, got {self.data!r}. Give at least one.")

    @property
    def sources(self) -> dict[str, str]:
        """Files and folders of the data, by the names of their sources.

        Raises:
            ValueError: Two sources have the same name.
        """
        found: dict[str, str] = {}
        for word in (word.strip() for word in self.data.split(",")):
            if not word:
                continue
            name, equals, path = word.partition("=")
            name, path = (name.strip(), path.strip()) if equals else (Path(word).stem, word)
            if name in found:
                raise ValueError(
                    f"--data must have sources of distinct names, got {name} twice. Write NAME=PATH for one of them."
                )
            found[name] = path
        return found

    def _check_useless(self) -> None:
        alone = {field_.name: field_.default for field_ in fields(self)}
        names = ("gpus_per_worker", "cpus_per_worker", "retries")
        useless = [name for name in names if getattr(self, name) != alone[name]]
        if self.workers == 0 and useless:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in useless)
            raise ValueError(
                f"{flags} must go with --workers, got none, where it has no effect. Give the number of Ray workers, "
                "or leave it out."
            )
        if self.workers == 0 and (self.training.shard or self.training.context_parallel > 1):
            raise ValueError(
                "training.shard and training.context_parallel must go with --workers, got none, where they have no "
                "effect. Give the number of Ray workers, or leave them out."
            )


def resolved_settings(config: FinetuneConfig, facts: Mapping[str, object]) -> dict[str, object]:
    """Return every setting as what YAML can hold, and what the run must share with its beginning.

    Args:
        config: What the user set, with a precision and a window in place of defaults.
        facts: Fingerprints of model, factors and data, by name.
    """
    plain: dict[str, object] = yaml.safe_load(yaml.safe_dump(_without_tuples(asdict(config))))
    return plain | dict(facts)


def _without_tuples(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _without_tuples(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_without_tuples(item) for item in value]
    return value
