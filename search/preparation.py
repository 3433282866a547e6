"""What a search needs before its first measurement: documents, formulas, the space, a scorer."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from needles.corpus import Split
from needles.document import NeedleDocument, build_documents
from needles.prompts import RULER_BASE, chat_prompt
from rope.critical_dimension import critical_dim_candidates, theoretical_critical_dim
from rope.factors import RescaleFactors
from rope.temperature import attention_temperature
from search.config import SearchConfig
from search.formulas import BEST, WARMER, formula
from search.monotone_space import CoordinateSpace, MonotoneSpace
from search.panels import Panels, by_depth
from search.parametrization import Parametrization, all_pairs, from_critical_dim, spline
from search.place import inside_ray_copy
from search.precision import device_of_workers
from search.samplers.cmaes import CmaesSampler
from search.samplers.gradient import GradientSampler
from search.samplers.joint import JointSampler
from search.samplers.longrope2 import LongRoPE2Sampler
from search.samplers.named import NamedSampler
from search.space import SearchSpace
from workers.local import LocalScorer
from workers.model import ModelDescription, load_model
from workers.pool import RayPool
from workers.quantized import load_ranked_scoring
from workers.scorer import Scorer, ScoringFactory
from workers.scoring import load_scoring

logger = logging.getLogger(__name__)

DOCUMENTS = "documents.json"
"""What a run directory keeps of its documents."""
MODEL_FILES = (".json", ".safetensors", ".bin", ".gguf")
"""Files that make a model what it is."""
END_BYTES = 2**16
"""Bytes at either end of a file that tell it from another."""
OWN_WINDOW_DOCUMENTS = 8
"""Documents on which it is checked that the model answers several needles in its own window."""


class RunDocuments(NamedTuple):
    """The documents of a run; no two share a needle, and those of different splits share no text."""

    search: list[NeedleDocument]
    """Target length; candidates are scored on them."""
    short: list[NeedleDocument]
    """Original length, from the search's text; none with the objective `long` alone."""
    validation: list[NeedleDocument]
    """Target length; they choose among the finalists."""
    heldout: list[NeedleDocument]
    """Target length; what is reported, and what a searched winner must beat the formulas on."""
    original: list[NeedleDocument]
    """Original length, from the held-out text."""
    own_window: list[NeedleDocument]
    """Original length with several needles each; none where documents have one."""

    @property
    def all(self) -> list[NeedleDocument]:
        """All of them."""
        return [document for part in self for document in part]


def build_run_documents(config: SearchConfig, model: ModelDescription) -> RunDocuments:
    """Return the run's documents, drawn from its seed.

    Raises:
        ValueError: As `build_documents`; the target is not above the original length.
    """
    original_length = model.geometry.original_length
    if config.target_length <= original_length:
        raise ValueError(
            f"--target-length must be above the model's original window of {original_length} tokens, "
            f"got {config.target_length}. Ask for more, or set the window with --original-length."
        )
    prompt = chat_prompt(model.tokenizer) if config.documents.prompt == "chat" else RULER_BASE
    built: list[NeedleDocument] = []

    def build(split: Split, num: int, length: int, *, part: int, num_needles: int = 1) -> list[NeedleDocument]:
        if num == 0:
            return []
        documents = build_documents(
            model.tokenizer,
            config.corpus,
            split=split,
            num_documents=num,
            length=length,
            rng=np.random.default_rng([config.seed, part]),
            prompt=prompt,
            taken=[needle for document in built for needle in document.needles],
            column=config.documents.column,
            num_needles=num_needles,
        )
        built.extend(documents)
        return documents

    documents, target_length = config.documents, config.target_length
    logger.info("building the documents, %d of them for the search", config.num_search_documents)
    num_needles = documents.num_needles
    return RunDocuments(
        search=build("search", config.num_search_documents, target_length, part=0, num_needles=num_needles),
        short=build("search", config.num_short_documents, original_length, part=3),
        validation=build("validation", documents.num_validation, target_length, part=4),
        heldout=build("heldout", documents.num_heldout, target_length, part=1),
        original=build("heldout", documents.num_original, original_length, part=2),
        own_window=build(
            "search", OWN_WINDOW_DOCUMENTS if num_needles > 1 else 0, original_length, part=5, num_needles=num_needles
        ),
    )


def panels_of(config: SearchConfig, documents: RunDocuments) -> Panels:
    """Return which documents each generation's candidates are measured on."""
    return Panels(
        documents=by_depth(documents.search),
        size=config.num_per_candidate,
        num_fresh=config.num_fresh_documents,
        batch_size=config.documents.batch_size or 1,
        always=tuple(document.id for document in documents.short),
    )


def document_record(document: NeedleDocument) -> dict[str, object]:
    """Return what a run directory keeps of a document: all but its token ids, with their hash."""
    left_out = {"token_ids", "needle", "answers"}
    record = {field.name: getattr(document, field.name) for field in fields(document) if field.name not in left_out}
    needles = [needle._asdict() for needle in document.needles]
    return record | {"length": document.length, "needles": needles, "answer_spans": document.answer_spans}


def model_fingerprint(path: str) -> str:
    """Return what tells a model from another wherever it lies: a hash of names, sizes and ends of its files.

    Args:
        path: Folder, .gguf file, or hub id, which is its own fingerprint.

    Returns:
        16 hexadecimal digits, or the hub id.
    """
    place = Path(path)
    if not place.exists():
        return path
    files = sorted(file for file in place.iterdir() if file.is_file()) if place.is_dir() else [place]
    digest = hashlib.sha256()
    for file in (file for file in files if file.suffix in MODEL_FILES):
        with file.open("rb") as content:
            digest.update(f"{file.name} {file.stat().st_size} ".encode())
            digest.update(content.read(END_BYTES))
            content.seek(max(0, file.stat().st_size - END_BYTES))
            digest.update(content.read(END_BYTES))
    return digest.hexdigest()[:16]


def check_documents(run_dir: Path, documents: Sequence[NeedleDocument]) -> None:
    """Refuse to take up a run whose documents cannot be built again as they were.

    Raises:
        ValueError: A document's tokens are others than those that the run began with.
    """
    path = run_dir / DOCUMENTS
    if not path.is_file():  # the process before died earlier than it could write them
        return
    before = {record["id"]: record["sha256"] for record in json.loads(path.read_text(encoding="utf-8"))}
    now = {document.id: document.sha256 for document in documents}
    if before != now:
        changed = sorted(key for key in before | now if before.get(key) != now.get(key))
        raise ValueError(
            f"a resumed run must have the documents that it began with, got others for {len(changed)} of {len(now)} "
            f"({changed[0]}, ...). Did the corpus or the tokenizer change? Restore it, or start a new run."
        )


def check_budget(config: SearchConfig, num_formulas: int) -> None:
    """Refuse a budget that ends before the search begins.

    Raises:
        ValueError: It is smaller than what the formulas may need.
    """
    needed = (num_formulas + len(WARMER)) * (config.num_formula_documents + config.num_short_documents)
    if config.budget is not None and config.budget <= needed:
        raise ValueError(
            f"--budget must be above the {needed} forwards of {num_formulas + len(WARMER)} formulas on "
            f"{config.num_formula_documents + config.num_short_documents} documents each, got {config.budget}. Raise "
            "it, or name fewer formulas.methods, formulas.temperatures or documents.num_formula."
        )


def make_sampler(config: SearchConfig, model: ModelDescription, best_formula: RescaleFactors) -> JointSampler:
    """Return the sampler that the configuration asks for; those of the monotone space start from the best formula.

    Raises:
        ValueError: The space is empty, or the population has no room for what it must begin with.
    """
    if config.algorithm == "longrope2":
        return LongRoPE2Sampler(
            longrope2_space(config, model, best_formula),
            config.evolution,
            seed=config.seed,
            schedule=config.schedule,
            remeasures_parents=config.num_fresh_documents > 0,
        )
    start = _start(config, model, best_formula)
    settings = _monotone_settings(config, model, start)
    if config.algorithm == "gradient":
        return GradientSampler(MonotoneSpace(**settings), config.gradient, start=start)
    if config.algorithm == "cmaes":
        return CmaesSampler(MonotoneSpace(**settings), config.cmaes, start=start, seed=config.seed)
    return NamedSampler(
        CoordinateSpace(**settings),
        config.optuna,
        name=config.algorithm,
        start=start,
        seed=config.seed,
        schedule=config.schedule,
        directions=("minimize",) * len(config.objective_names),
    )


class _MonotoneSettings(TypedDict):
    template: RescaleFactors
    parametrization: Parametrization
    high: float
    temperatures: tuple[float, float]


def _start(config: SearchConfig, model: ModelDescription, best_formula: RescaleFactors) -> RescaleFactors:
    choice = config.monotone.start
    if choice == "best":
        return best_formula
    if choice == "ntk":
        return formula("ntk-critical", config, model).with_temperature(best_formula.attention_temperature)
    yarn = formula("yarn", config, model)
    return yarn.with_temperature(attention_temperature("yarn", scale=yarn.scale, original_length=yarn.original_length))


def _monotone_settings(config: SearchConfig, model: ModelDescription, start: RescaleFactors) -> _MonotoneSettings:
    monotone, num_pairs = config.monotone, len(start.values)
    if monotone.knots is not None and monotone.knots > num_pairs:
        raise ValueError(
            f"monotone.knots must be at most the model's {num_pairs} frequency pairs, got {monotone.knots}. Lower it."
        )
    if monotone.knots is not None:
        parametrization = spline(num_pairs, monotone.knots)
    elif monotone.free == "critical":
        geometry = model.geometry
        critical_dim = theoretical_critical_dim(geometry.rotary_dim, geometry.base, geometry.original_length)
        parametrization = from_critical_dim(num_pairs, critical_dim)
    else:
        parametrization = all_pairs(num_pairs)
    fixed = start.attention_temperature
    return _MonotoneSettings(
        template=start,
        parametrization=parametrization,
        high=max(4 * start.scale, *start.values) if monotone.high is None else monotone.high,
        temperatures=(0.8, 2.0) if monotone.free_temperature else (fixed, fixed),
    )


def longrope2_space(config: SearchConfig, model: ModelDescription, best_formula: RescaleFactors) -> SearchSpace:
    """Return the paper's space; `best_formula` supplies its temperature where the configuration says "best"."""
    geometry = model.geometry
    scale = config.target_length / geometry.original_length
    choice = config.space.attention_temperature
    temperature = (
        best_formula.attention_temperature
        if choice == BEST
        else attention_temperature(choice, scale=scale, original_length=geometry.original_length)
    )
    candidates = critical_dim_candidates(geometry.rotary_dim, geometry.base, geometry.original_length)
    return SearchSpace(
        rotary_dim=geometry.rotary_dim,
        base=geometry.base,
        original_length=geometry.original_length,
        target_length=config.target_length,
        critical_dims=tuple(sorted(config.space.critical_dims or (dim for dim in candidates if dim > 0))),
        low=scale if config.space.low is None else config.space.low,
        high=2 * scale if config.space.high is None else config.space.high,
        step=config.space.step,
        attention_temperature=temperature,
    )


@contextmanager
def open_scorer(config: SearchConfig, documents: Sequence[NeedleDocument]) -> Iterator[Scorer]:
    """Yield the scorer that the configuration asks for, in this process or on Ray, and close it at the end."""
    here = Path(config.model)
    # Ray's workers start in other folders, except those of a submitted job, which have the same copy of the user's
    path = str(here.absolute()) if here.exists() and not inside_ray_copy(Path.cwd()) else config.model
    assert config.dtype != "auto"
    load = partial(
        load_model,
        path,
        dtype=config.dtype,
        device=device_of_workers(config),
        gguf_file=config.gguf_file,
        original_length=config.original_length,
        num_devices=max(1, int(config.gpus_per_worker)),
    )
    make: ScoringFactory = partial(load_scoring, load=load)
    if config.ranking_weights != "none":
        make = partial(load_ranked_scoring, load=load, weights=config.ranking_weights)
    scorer: Scorer
    if config.workers == 0:
        scorer = LocalScorer(make(documents), documents, max_retries=config.retries)
    else:
        scorer = RayPool(
            make,
            documents,
            num_workers=config.workers,
            min_workers=config.min_workers,
            gpus_per_worker=config.gpus_per_worker,
            cpus_per_worker=config.cpus_per_worker,
            max_retries=config.retries,
            document_timeout=config.document_timeout,
        )
    try:
        yield scorer
    finally:
        scorer.close()
