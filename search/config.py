"""The configuration of a whole search: one small frozen class per owner."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from results.urls import HIDDEN, without_password
from rope.methods import METHODS
from search.samplers.cma import CmaConfig
from search.samplers.joint import Schedule
from search.samplers.longrope2 import EvolutionConfig

MAY_CHANGE = (
    "model",
    "corpus",
    "run_dir",
    "mirror",
    "workers",
    "min_workers",
    "gpus_per_worker",
    "cpus_per_worker",
    "document_timeout",
    "retries",
)
"""Settings that a run may be taken up with another value of: places, whose contents are compared by themselves, and
workers. Another number of threads adds up in another order; all else computes the same."""
FINGERPRINT = "model_fingerprint"
"""Key in a run's configuration, beside the settings, by which the model is known wherever it lies."""


@dataclass(frozen=True, kw_only=True)
class DocumentsConfig:
    """The needle documents that score candidates, and those that judge the winner."""

    column: str = "text"
    """Column of the text in JSON lines, Parquet and datasets."""
    prompt: Literal["ruler", "chat"] = "ruler"
    """RULER's prompt for base models, or the same through the tokenizer's chat template."""
    num_search: int = 10
    """Documents of the target length that every candidate is scored on."""
    num_heldout: int = 10
    """Documents of the target length, of other text and needles, that decide the winner."""
    num_original: int = 10
    """Held-out documents of the original length."""
    batch_size: int = 1
    """Documents in one forward."""

    def __post_init__(self) -> None:
        for name in ("num_search", "num_heldout", "num_original", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"documents.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """What the search is free to change."""

    critical_dims: list[int] | None = None
    """Candidates for the real critical dimension (pair indices from 0); default: from ten periods inside the
    original window up to the theoretical one."""
    low: float | None = None
    """Smallest factor from the critical dimension up; default: the scale, as in the paper."""
    high: float | None = None
    """Largest factor; default: twice the scale, as in the paper."""
    step: float = 0.01
    """Grid step of the factors."""
    attention_temperature: float | str = "longrope"
    """Temperature of every candidate: none, longrope, yarn, a number, or best (that of the best formula)."""


@dataclass(frozen=True, kw_only=True)
class FormulasConfig:
    """The closed-form methods that are measured first, in the same study and on the same documents."""

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """Names of methods."""
    temperatures: list[float | str] = field(default_factory=lambda: ["paper", "none", "longrope", "yarn"])
    """Temperatures that each method is measured with: paper (its own), none, longrope, yarn or a number. The one
    that the search uses is always measured too."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown or not self.methods:
            raise ValueError(
                f"formulas.methods must name at least one of {', '.join(METHODS)}, got "
                f"{', '.join(unknown) or 'an empty list'}. Choose from these."
            )
        if not self.temperatures or "best" in self.temperatures:
            raise ValueError(
                f"formulas.temperatures must hold at least one of paper, none, longrope, yarn or a number, got "
                f"{self.temperatures}. Choose from these."
            )


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A whole search."""

    model: str = ""
    """Folder of a Hugging Face causal LM, or a .gguf file."""
    corpus: str = ""
    """Haystack: text file, JSON lines, Parquet, saved dataset, a folder of them, or `noise` or `distractors`."""
    target_length: int = 0
    """Window to reach, tokens."""
    original_length: int | None = None
    """Pre-training window in tokens, where the model's config does not say it (or says it wrong)."""
    gguf_file: str | None = None
    """Name of a GGUF file inside the folder given as the model."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of weights and activations; angles are always float32."""
    device: str = "auto"
    """Where the model runs: auto (CUDA if there is one), cpu, cuda, cuda:1, ..."""
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
    """The needle documents."""
    formulas: FormulasConfig = field(default_factory=FormulasConfig)
    """The formulas to beat."""
    algorithm: Literal["longrope2", "cma"] = "longrope2"
    """The paper's evolution from a critical dimension upward, or CMA-ES over all pairs and the temperature."""
    space: SpaceConfig = field(default_factory=SpaceConfig)
    """The space of algorithm longrope2."""
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    """The evolution of algorithm longrope2."""
    cma: CmaConfig = field(default_factory=CmaConfig)
    """CMA-ES, of algorithm cma."""
    num_finalists: int = 3
    """Best searched candidates that are measured on the held-out documents."""
    seed: int = 0
    """The one seed: documents and search follow from it."""
    schedule: Schedule = "steady"
    """steady asks for the next candidate as soon as a worker is free; generational waits for whole generations, and
    its result does not depend on which worker was faster."""
    workers: int = 0
    """Ray actors that score; 0 scores in this process without Ray."""
    min_workers: int | None = None
    """Workers that the cluster must have room for at the start; the others join when nodes do. Default: all."""
    gpus_per_worker: float = 0.0
    """GPUs of each Ray actor: a fraction for small models, a whole number to spread one model over several."""
    cpus_per_worker: float = 1.0
    """CPUs of each Ray actor."""
    document_timeout: float | None = None
    """Seconds after which a document's worker is taken to hang; default: learnt from the documents finished."""
    retries: int = 3
    """Further tries for documents whose worker died, raised or hung, before they fail their candidate."""
    run_dir: str | None = None
    """Folder for everything the run leaves; default: runs/<date and time>."""
    resume: bool = False
    """Take up the run in --run-dir, with the configuration it holds."""
    mirror: str | None = None
    """Folder or URL (s3://, gs://, file://, ...) where all files of the run are copied while it goes on."""
    storage: str | None = None
    """Optuna storage URL; default: a journal file in the run directory."""

    def __post_init__(self) -> None:
        if self.resume and self.run_dir is None:
            raise ValueError("--resume must go with --run-dir, got it without. Name the folder of the run to take up.")
        required = {
            "--model": self.model,
            "--corpus": self.corpus,
            "--target-length": self.target_length > 0,
        }
        missing = [flag for flag, value in required.items() if not value]
        if missing:
            raise ValueError(f"a search needs {', '.join(missing)}; give them as options or in a file by --config")
        owners = {"space": SpaceConfig(), "evolution": EvolutionConfig(), "cma": CmaConfig()}
        unused = {"longrope2": ["cma"], "cma": ["space", "evolution"]}[self.algorithm]
        changed = [name for name in unused if getattr(self, name) != owners[name]]
        if changed:
            raise ValueError(
                f"settings of {' and '.join(changed)} must go with their own algorithm, got them with --algorithm "
                f"{self.algorithm}, where they have no effect. Leave them out."
            )
        self._check_workers()
        if self.num_finalists < 1:
            raise ValueError(f"--num-finalists must be at least 1, got {self.num_finalists}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")

    def _check_workers(self) -> None:
        if self.workers < 0 or self.gpus_per_worker < 0 or self.cpus_per_worker < 0 or self.retries < 0:
            raise ValueError("--workers, --gpus-per-worker, --cpus-per-worker and --retries must not be negative")
        alone = {"min_workers": None, "gpus_per_worker": 0.0, "cpus_per_worker": 1.0, "document_timeout": None}
        useless = [name for name, default in alone.items() if getattr(self, name) != default]
        if self.workers == 0 and useless:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in useless)
            raise ValueError(
                f"{flags} must go with --workers, got none, where it has no effect. Give the number of Ray workers, "
                "or leave it out."
            )
        if self.gpus_per_worker > 1 and self.gpus_per_worker != int(self.gpus_per_worker):
            raise ValueError(
                f"--gpus-per-worker must be a whole number above 1, got {self.gpus_per_worker:g}. Ray shares out "
                "fractions of one GPU only."
            )
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(
                f"--min-workers must lie between 1 and --workers, got {self.min_workers} of {self.workers}. Correct it."
            )
        if self.document_timeout is not None and not self.document_timeout > 0:
            raise ValueError(f"--document-timeout must be above 0 seconds, got {self.document_timeout:g}. Correct it.")


def resolved_config(
    config: SearchConfig, original_length: int, run_dir: Path, *, model_fingerprint: str
) -> dict[str, object]:
    """Return every setting of a run as what YAML can hold, the password of a storage URL left out.

    Args:
        config: What the user set.
        original_length: The model's window, which the user may have left to its configuration, tokens.
        run_dir: Where the run's results go.
        model_fingerprint: Of the model's files.

    Returns:
        Settings by name. URLs have no place where a password was, so that one which the client finds elsewhere
        (PGPASSWORD, ~/.pgpass, ~/.aws) opens them.
    """
    settings = asdict(config) | {"original_length": original_length, "run_dir": str(run_dir)}
    settings[FINGERPRINT] = model_fingerprint
    del settings["resume"]
    return settings | {name: _without_trace(url) for name in ("storage", "mirror") if (url := settings[name])}


def has_password(url: str | None) -> bool:
    """Return whether a URL holds what a run directory does not keep."""
    return url is not None and without_password(url) != url


def _without_trace(url: str) -> str:
    hidden = without_password(url)
    return re.sub(rf":{re.escape(HIDDEN)}(?=@)|(?<=[?&])\w+={re.escape(HIDDEN)}&?", "", hidden).rstrip("?&")
