"""The configuration of a whole search: one small frozen class per owner."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from results.urls import HIDDEN, without_password
from search.objectives import Aggregate
from search.racing import FEWEST_DOCUMENTS, Racing
from search.samplers.cmaes import CmaesConfig
from search.samplers.gradient import GradientConfig
from search.samplers.joint import Schedule
from search.samplers.longrope2 import EvolutionConfig
from search.samplers.named import SAMPLERS, UNFIT, NamedConfig, check_sampler
from search.sections import DocumentsConfig, FormulasConfig, MonotoneConfig, SpaceConfig

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
MOVING = ("gradient", "cmaes")
"""Algorithms that move over the search documents, a few for each generation."""
ALGORITHMS = (*MOVING, "longrope2", *SAMPLERS)
"""Names of algorithms."""
FINGERPRINT = "model_fingerprint"
"""Key in a run's configuration, beside the settings, by which the model is known wherever it lies."""


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
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of weights and activations; angles are always float32. auto: bfloat16 where the device multiplies it
    itself, else float32; a run keeps what it began with, on all its workers."""
    ranking_weights: Literal["none", "int8", "fp8"] = "none"
    """Weights of the copy of the model that scores the search documents; validation and held-out documents are always
    scored with the weights themselves. Needs the extra `quantized`; fp8 a GPU of compute capability 8.9 or more."""
    device: str = "auto"
    """Where the model runs: auto (CUDA if there is one), cpu, cuda, cuda:1, ..."""
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
    """The needle documents."""
    formulas: FormulasConfig = field(default_factory=FormulasConfig)
    """The formulas to beat."""
    algorithm: str = "gradient"
    """gradient: descent along the loss's gradient. cmaes: CMA-ES. longrope2: the paper's evolution. Or a sampler of
    Optuna's, as a baseline: tpe, random, qmc, gp, nsga2, nsga3, optuna-cmaes."""
    space: SpaceConfig = field(default_factory=SpaceConfig)
    """The space of algorithm longrope2."""
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    """The evolution of algorithm longrope2."""
    monotone: MonotoneConfig = field(default_factory=MonotoneConfig)
    """The space of all other algorithms."""
    gradient: GradientConfig = field(default_factory=GradientConfig)
    """The descent of algorithm gradient."""
    cmaes: CmaesConfig = field(default_factory=CmaesConfig)
    """CMA-ES, of algorithm cmaes."""
    optuna: NamedConfig = field(default_factory=NamedConfig)
    """The samplers of Optuna's."""
    budget: int | None = None
    """Forwards of search documents, those of the formulas among them, after which the search ends; a gradient costs
    three. Default: as many as the algorithm's settings come to."""
    objectives: str = "long"
    """long, or long,short: also what the factors cost at the original length, for engines that cannot switch."""
    aggregate: Aggregate = "mean"
    """How documents' losses become one: the paper's mean, or capped at the loss of guessing the needle's value."""
    racing: Literal["auto", "wilcoxon", "none"] = "auto"
    """Drop candidates that their first documents show to be worse than another; auto: where that can be shown."""
    race: Racing = field(default_factory=Racing)
    """When a candidate is dropped."""
    fresh_documents: int | None = None
    """Documents of a candidate that are new in every generation; default: all for gradient and cmaes, else none."""
    num_finalists: int = 3
    """Best searched candidates, and best formulas, that are measured on the validation documents."""
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
    """Seconds after which a document's worker is taken to hang (a gradient takes up to four times as long as a loss);
    default: learnt from the documents finished."""
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
        self._check_algorithm()
        self._check_objectives()
        self._check_ranking_weights()
        self._check_panels()
        self._check_workers()
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"--budget must be at least 1 forward, got {self.budget}. Raise it.")
        if self.num_finalists < 1:
            raise ValueError(f"--num-finalists must be at least 1, got {self.num_finalists}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")

    @property
    def objective_names(self) -> tuple[str, ...]:
        """Names of the objectives."""
        return tuple(self.objectives.split(","))

    @property
    def num_search_documents(self) -> int:
        """Documents of the target length for the search."""
        default = {"longrope2": 10, "gradient": 400, "cmaes": 400}.get(self.algorithm, 16)
        return self.documents.num_search or default

    @property
    def num_per_candidate(self) -> int:
        """How many of them each candidate is measured on."""
        default = {"gradient": 4, "cmaes": 8}.get(self.algorithm, self.num_search_documents)
        return self.documents.num_per_candidate or min(default, self.num_search_documents)

    @property
    def num_short_documents(self) -> int:
        """Documents of the original length that every candidate is measured on."""
        return self.documents.num_short if "short" in self.objective_names else 0

    @property
    def num_fresh_documents(self) -> int:
        """How many of those are new in every generation."""
        if self.fresh_documents is not None:
            return self.fresh_documents
        moves = self.algorithm in MOVING and self.num_per_candidate < self.num_search_documents
        return self.num_per_candidate if moves else 0

    @property
    def num_formula_documents(self) -> int:
        """How many of the search documents each formula is measured on."""
        default = min(24, self.num_search_documents) if self.algorithm in MOVING else self.num_per_candidate
        return self.documents.num_formula or default

    @property
    def races(self) -> bool:
        """Whether candidates are raced."""
        if self.racing == "auto":
            most = max(self._num_raced_documents, self.documents.num_validation)
            return self.objectives == "long" and most >= FEWEST_DOCUMENTS
        return self.racing == "wilcoxon"

    @property
    def _num_raced_documents(self) -> int:
        return max(self.num_per_candidate, self.num_formula_documents)

    def _check_algorithm(self) -> None:
        owners: dict[str, tuple[object, tuple[str, ...]]] = {
            "space": (SpaceConfig(), ("longrope2",)),
            "evolution": (EvolutionConfig(), ("longrope2",)),
            "monotone": (MonotoneConfig(), tuple(name for name in ALGORITHMS if name != "longrope2")),
            "gradient": (GradientConfig(), ("gradient",)),
            "cmaes": (CmaesConfig(), ("cmaes",)),
            "optuna": (NamedConfig(), tuple(SAMPLERS)),
        }
        if self.algorithm not in ALGORITHMS:
            why = f", {UNFIT[self.algorithm]}" if self.algorithm in UNFIT else ""
            raise ValueError(
                f"--algorithm must be one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}{why}. Choose one of them."
            )
        changed = [
            name
            for name, (default, users) in owners.items()
            if getattr(self, name) != default and self.algorithm not in users
        ]
        if changed:
            raise ValueError(
                f"settings of {' and '.join(changed)} must go with their own algorithm, got them with --algorithm "
                f"{self.algorithm}, where they have no effect. Leave them out."
            )

    def _check_objectives(self) -> None:
        if self.objective_names not in (("long",), ("long", "short")):
            raise ValueError(
                f"--objectives must be long or long,short (perplexity at the target length, and what the factors cost "
                f"at the original one), got {self.objectives!r}. Choose one of them."
            )
        if self.algorithm in SAMPLERS:
            check_sampler(self.algorithm, len(self.objective_names))
        if self.documents.num_short != DocumentsConfig.num_short and len(self.objective_names) == 1:
            raise ValueError("documents.num_short must go with --objectives long,short, got long alone. Leave it out.")

    def _check_ranking_weights(self) -> None:
        if self.ranking_weights != "none" and self.algorithm == "gradient":
            raise ValueError(
                f"--ranking-weights {self.ranking_weights} must go with an algorithm that needs no gradient, got "
                "gradient: 8-bit weights have none. Use --algorithm cmaes or another, or leave it out."
            )
        if self.ranking_weights == "fp8" and self.dtype == "float32":
            raise ValueError("--ranking-weights fp8 must go with --dtype bfloat16, got float32. Set it, or use int8.")
        if self.ranking_weights == "fp8" and self.device == "cpu":
            raise ValueError("--ranking-weights fp8 must go with a GPU, got --device cpu. Use int8.")

    def _check_panels(self) -> None:
        num_search = self.num_search_documents
        for name, value in (("num_per_candidate", self.num_per_candidate), ("num_formula", self.num_formula_documents)):
            if value > num_search:
                raise ValueError(
                    f"documents.{name} must be at most documents.num_search, got {value} of {num_search}. Correct it."
                )
        if self.num_fresh_documents < 0 or self.num_fresh_documents > self.num_per_candidate:
            raise ValueError(
                f"--fresh-documents must lie between 0 and the {self.num_per_candidate} documents of a candidate, got "
                f"{self.num_fresh_documents}. Correct it."
            )
        if self.num_fresh_documents and self.num_per_candidate == num_search:
            raise ValueError(
                f"--fresh-documents must have other documents to take from, got {num_search} search documents that "
                "every candidate is measured on. Raise documents.num_search or lower documents.num_per_candidate."
            )
        if self.num_fresh_documents and self.algorithm not in (*MOVING, "longrope2"):
            raise ValueError(
                f"--fresh-documents must go with gradient, cmaes or longrope2, got {self.algorithm}, which would "
                "compare candidates on different documents. Leave it out."
            )
        if self.num_fresh_documents and self.algorithm == "longrope2" and self.schedule != "generational":
            raise ValueError(
                "--fresh-documents must go with --schedule generational for longrope2, whose parents are measured "
                "again with every generation, got steady. Set it."
            )
        self._check_racing()

    def _check_racing(self) -> None:
        if self.race != Racing() and not self.races:
            raise ValueError("settings of race must go with --racing wilcoxon, got none of it. Leave them out.")
        if self.racing != "wilcoxon":
            return
        if self._num_raced_documents < FEWEST_DOCUMENTS:
            raise ValueError(
                f"--racing wilcoxon must have at least {FEWEST_DOCUMENTS} search documents, got "
                f"{self._num_raced_documents}: fewer cannot show that a candidate is worse. Give more with "
                "documents.num_search, or --racing none."
            )
        if len(self.objective_names) > 1:
            raise ValueError(
                "--racing wilcoxon must go with one objective, got long,short: what is worse in one may be better in "
                "the other. Use --racing none."
            )

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
