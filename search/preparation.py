"""What a search needs before its first measurement: documents, formulas, the space, a scorer."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from needles.corpus import Split
from needles.document import NeedleDocument, build_documents
from needles.prompts import RULER_BASE, chat_prompt
from results.measurement import candidate_key
from rope.critical_dimension import critical_dim_candidates
from rope.factors import RescaleFactors
from rope.methods import METHODS, PAPER_TEMPERATURE
from rope.temperature import attention_temperature
from search.config import SearchConfig
from search.monotone_space import MonotoneSpace
from search.place import inside_ray_copy
from search.samplers.cma import CmaSampler
from search.samplers.joint import JointSampler
from search.samplers.longrope2 import LongRoPE2Sampler
from search.space import SearchSpace
from workers.local import LocalScorer
from workers.model import ModelDescription, load_model
from workers.pool import RayPool
from workers.scorer import Scorer
from workers.scoring import load_scoring

DOCUMENTS = "documents.json"
"""What a run directory keeps of its documents."""
MODEL_FILES = (".json", ".safetensors", ".bin", ".gguf")
"""Files that make a model what it is."""
END_BYTES = 2**16
"""Bytes at either end of a file that tell it from another."""
BEST = "best"
"""The temperature choice that stands for the best formula's."""
PAPER = "paper"
"""The temperature choice that stands for a formula's own."""


class RunDocuments(NamedTuple):
    """The documents of a run; no two share a needle, and those to search on share no text with the others."""

    search: list[NeedleDocument]
    """Target length; every candidate is scored on them."""
    heldout: list[NeedleDocument]
    """Target length; they decide the winner."""
    original: list[NeedleDocument]
    """Original length, from the held-out text."""

    @property
    def all(self) -> list[NeedleDocument]:
        """All of them."""
        return [*self.search, *self.heldout, *self.original]


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

    def build(split: Split, num: int, length: int) -> list[NeedleDocument]:
        documents = build_documents(
            model.tokenizer,
            config.corpus,
            split=split,
            num_documents=num,
            length=length,
            rng=np.random.default_rng([config.seed, len(built)]),
            prompt=prompt,
            taken=[document.needle for document in built],
            column=config.documents.column,
        )
        built.extend(documents)
        return documents

    return RunDocuments(
        search=build("search", config.documents.num_search, config.target_length),
        heldout=build("heldout", config.documents.num_heldout, config.target_length),
        original=build("heldout", config.documents.num_original, original_length),
    )


def batches_of(documents: Sequence[NeedleDocument], batch_size: int) -> list[tuple[str, ...]]:
    """Return the ids of documents of one length, in batches for one forward each."""
    ids = [document.id for document in documents]
    return [tuple(ids[start : start + batch_size]) for start in range(0, len(ids), batch_size)]


def document_record(document: NeedleDocument) -> dict[str, object]:
    """Return what a run directory keeps of a document: all but its token ids, with their hash."""
    record = {field.name: getattr(document, field.name) for field in fields(document) if field.name != "token_ids"}
    return record | {"length": document.length, "needle": document.needle._asdict()}


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


def formula_factors(
    config: SearchConfig, model: ModelDescription, *, temperature: float | None = None
) -> list[RescaleFactors]:
    """Return every formula at every temperature that the configuration asks for, each distinct candidate once.

    Args:
        config: The whole search. The fixed temperature of algorithm longrope2 is among those asked for.
        model: What the formulas are for.
        temperature: The one temperature to use instead.
    """
    choices: list[float | str] = [*config.formulas.temperatures]
    if config.algorithm == "longrope2" and config.space.attention_temperature != BEST:
        choices.append(config.space.attention_temperature)
    found: dict[str, RescaleFactors] = {}
    for name in config.formulas.methods:
        factors = METHODS[name](
            model.geometry.rotary_dim,
            model.geometry.base,
            original_length=model.geometry.original_length,
            target_length=config.target_length,
        )
        for choice in choices if temperature is None else [temperature]:
            chosen = attention_temperature(
                PAPER_TEMPERATURE[name] if choice == PAPER else choice,
                scale=factors.scale,
                original_length=factors.original_length,
            )
            candidate = factors.with_temperature(chosen)
            found.setdefault(candidate_key(candidate), candidate)
    return list(found.values())


def make_sampler(config: SearchConfig, model: ModelDescription, best_formula: RescaleFactors) -> JointSampler:
    """Return the sampler that the configuration asks for; CMA-ES starts from the best formula.

    Raises:
        ValueError: The space is empty, or the population has no room for what it must begin with.
    """
    if config.algorithm == "cma":
        high = 4 * best_formula.scale if config.cma.high is None else config.cma.high
        space = MonotoneSpace(template=best_formula, high=high)
        return CmaSampler(space, config.cma, start=best_formula, seed=config.seed, schedule=config.schedule)
    found = longrope2_space(config, model, best_formula)
    return LongRoPE2Sampler(found, config.evolution, seed=config.seed, schedule=config.schedule)


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
    # Ray hides no GPU from a worker that asked for none
    without_gpu = config.workers > 0 and config.gpus_per_worker == 0 and config.device == "auto"
    load = partial(
        load_model,
        path,
        dtype=config.dtype,
        device="cpu" if without_gpu else config.device,
        gguf_file=config.gguf_file,
        original_length=config.original_length,
        num_devices=max(1, int(config.gpus_per_worker)),
    )
    scorer: Scorer
    if config.workers == 0:
        scorer = LocalScorer(load_scoring(documents, load=load), documents, max_retries=config.retries)
    else:
        scorer = RayPool(
            partial(load_scoring, load=load),
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
