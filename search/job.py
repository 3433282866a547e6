"""A whole search: from a configuration to factors that load, the evidence for them, and a table."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from rich.console import Console

from results.export.huggingface import huggingface_fragment
from results.measurement import candidate_key
from results.provenance import gather
from results.run_directory import RunDirectory
from results.store import MeasurementStore
from results.summary import MethodResult, Summary, best_formula, best_result
from results.table import results_table
from rope.factors import RescaleFactors
from search.config import SearchConfig, resolved_config, without_password
from search.evolution import Ledger, best_of, evolve, measure_formulas
from search.place import check_storage, run_directory_path
from search.preparation import (
    RunDocuments,
    batches_of,
    build_run_documents,
    document_record,
    formula_factors,
    make_sampler,
    open_scorer,
)
from search.progress import SearchProgress
from search.samplers.generational import GenerationalSampler
from search.study import open_storage, open_study
from workers.model import ModelDescription, describe_model

logger = logging.getLogger(__name__)


def run_search(config: SearchConfig) -> Summary:
    """Run a search and return what it found; the run directory holds the rest, and its path is printed last.

    Args:
        config: The whole search.

    Returns:
        What `summary.json` in the run directory holds.

    Raises:
        ValueError: Something that the user gave cannot be used, or no formula could be measured.
        OSError: The run directory cannot be written to.
    """
    started, start = datetime.now(UTC), monotonic()
    console = Console()
    path = run_directory_path(config.run_dir, now=started, working_dir=Path.cwd(), home=Path.home())
    RunDirectory.check_free(path)
    check_storage(config.storage, working_dir=Path.cwd())
    model = describe_model(config.model, gguf_file=config.gguf_file, original_length=config.original_length)
    documents = build_run_documents(config, model)
    formulas = formula_factors(config, model)
    sampler = make_sampler(config, model, formulas[0])  # refuses a faulty space before anything is written
    with open_scorer(config, documents.all) as scorer:
        study_name = f"{Path(config.model).name} to {config.target_length} tokens, {path.name}"
        storage = open_storage(config.storage, study_name=study_name)
        run = RunDirectory.create(path, resolved_config(config, model.geometry.original_length, path), resume=False)
        logger.info("results go to %s", run.path)
        run.write_json("documents.json", [document_record(document) for document in documents.all])
        with SearchProgress(_num_documents(config, formulas, sampler), console=console) as progress:
            study = open_study(study_name, storage=storage, run_dir=run.path)
            ledger = Ledger(study=study, scorer=scorer, store=MeasurementStore(run.path), progress=progress)
            judged = _search_and_judge(config, model, documents, formulas, ledger)
    summary = Summary(
        model=config.model,
        original_length=documents.original[0].length,
        target_length=config.target_length,
        seed=config.seed,
        num_document_forwards=progress.num_document_forwards,
        seconds=round(monotonic() - start, 3),
        run_directory=str(run.path),
        methods=tuple(result for _, result in judged),
    )
    winner = next(factors for factors, result in judged if result is best_result(summary.methods))
    _write(run, config, model, summary, winner, started=started)
    console.print(results_table(summary))
    console.print(_verdict(summary), highlight=False)
    console.print(str(run.path), highlight=False, soft_wrap=True)
    return summary


def _search_and_judge(
    config: SearchConfig,
    model: ModelDescription,
    documents: RunDocuments,
    formulas: Sequence[RescaleFactors],
    ledger: Ledger,
) -> list[tuple[RescaleFactors, MethodResult]]:
    """Measure the formulas, evolve, then measure formulas and the best candidates on documents the search never saw."""
    search, heldout, original = (
        batches_of(part, config.documents.batch_size)
        for part in (documents.search, documents.heldout, documents.original)
    )
    scored = measure_formulas(ledger, formulas, search)
    sampler = make_sampler(config, model, best_of(scored).factors)
    found = evolve(ledger, sampler, search)
    if found:  # so that the comparison is fair where the search found a temperature of its own
        others = formula_factors(config, model, temperature=found[0].factors.attention_temperature)
        scored += measure_formulas(ledger, [factors for factors in others if not ledger.knows(factors)], search)
    formula_keys = {candidate_key(entry.factors) for entry in scored}
    new = [entry for entry in found if candidate_key(entry.factors) not in formula_keys]
    finalists = scored + new[: config.num_finalists]
    factors = [finalist.factors for finalist in finalists]
    heldout_perplexity = ledger.perplexities(factors, heldout)
    original_perplexity = ledger.perplexities(factors, original)
    return [
        (
            finalist.factors,
            MethodResult(
                name=finalist.factors.method,
                kind="searched" if finalist.factors.method == sampler.method else "formula",
                critical_dim=finalist.factors.critical_dim,
                attention_temperature=finalist.factors.attention_temperature,
                search_perplexity=finalist.perplexity,
                heldout_perplexity=heldout_perplexity[candidate_key(finalist.factors)],
                original_perplexity=original_perplexity[candidate_key(finalist.factors)],
            ),
        )
        for finalist in finalists
    ]


def _num_documents(config: SearchConfig, formulas: Sequence[RescaleFactors], sampler: GenerationalSampler) -> int:
    """Return about how many documents the run will measure; the bar needs no more."""
    documents = config.documents
    num_candidates = sum(sampler.generation_sizes)
    num_formulas = len(formulas) + (len(config.formulas.methods) if config.algorithm == "cma" else 0)
    num_judged = num_formulas + min(config.num_finalists, num_candidates)
    return (num_formulas + num_candidates) * documents.num_search + num_judged * (
        documents.num_heldout + documents.num_original
    )


def _write(
    run: RunDirectory,
    config: SearchConfig,
    model: ModelDescription,
    summary: Summary,
    winner: RescaleFactors,
    *,
    started: datetime,
) -> None:
    provenance = gather(
        seed=config.seed,
        started=started,
        command=[without_password(word) for word in sys.argv],
        hashes={"config.yaml": run.config_sha256},
    )
    winner = winner.with_provenance(model=config.model, config_sha256=run.config_sha256, created=provenance.gathered)
    run.write_text("factors.json", winner.to_json())
    if model.geometry.by_layer_type:
        logger.warning("no config_fragment.json: the model rotates by layer type, which one fragment cannot say")
    else:
        share = model.geometry.partial_rotary_factor
        run.write_json("config_fragment.json", huggingface_fragment(winner, partial_rotary_factor=share))
    run.write_json("provenance.json", asdict(provenance))
    run.write_text("summary.json", summary.to_json())


def _verdict(summary: Summary) -> str:
    formula = best_formula(summary.methods)
    if summary.gain == 0:
        return f"No candidate is better than the formula {formula.name} on the held-out documents: the formula wins."
    return (
        f"{summary.winner}: held-out needle loss (nats) {summary.gain:.1%} below the best formula's, "
        f"{formula.name} at temperature {formula.attention_temperature:.4f}."
    )
