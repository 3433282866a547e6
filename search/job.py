"""A whole search: from a configuration to factors that load, the evidence for them, and a table."""

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.storages import BaseStorage
from rich.console import Console

from results.export.huggingface import huggingface_fragment
from results.measurement import candidate_key
from results.mirror import Mirror
from results.provenance import Provenance, gather
from results.run_directory import RunDirectory
from results.run_lock import RunLock
from results.status import read_status, write_status
from results.store import MeasurementStore
from results.summary import MethodResult, Summary, best_formula, best_result
from results.table import results_table
from results.urls import without_password
from rope.factors import RescaleFactors
from search.config import FINGERPRINT, MAY_CHANGE, SearchConfig, resolved_config
from search.evolution import Ledger, best_of, evolve, measure_formulas, pairs
from search.journal import mend_journal
from search.place import check_mirror, check_storage, run_directory_path
from search.preparation import (
    DOCUMENTS,
    RunDocuments,
    batches_of,
    build_run_documents,
    check_documents,
    document_record,
    formula_factors,
    make_sampler,
    model_fingerprint,
    open_scorer,
)
from search.progress import Plan, SearchProgress
from search.reporting import Reporter, how_to_resume, reported, seconds_before, study_note
from search.samplers.joint import JointSampler
from search.stopping import interrupted_by_sigterm
from search.study import Trials, check_new, open_storage, open_study
from workers.model import ModelDescription, describe_model
from workers.scorer import Scorer

SUMMARY = "summary.json"
"""Written last: a run directory that holds it is finished."""

logger = logging.getLogger(__name__)


class _Prepared(NamedTuple):
    """What is known of a run before anything is measured or written."""

    path: Path
    settings: dict[str, object]
    study_name: str
    model: ModelDescription
    documents: RunDocuments
    formulas: list[RescaleFactors]
    sampler: JointSampler


class _Opened(NamedTuple):
    """What a run works with."""

    run: RunDirectory
    storage: BaseStorage
    scorer: Scorer


def run_search(config: SearchConfig) -> Summary:
    """Run a search, or take up one that did not finish, and return what it found.

    A run directory that holds an unfinished run of the same configuration is taken up. The directory holds everything
    that the run leaves; its path is printed last.

    Args:
        config: The whole search.

    Returns:
        What `summary.json` in the run directory holds.

    Raises:
        ValueError: Something that the user gave cannot be used, or no formula could be measured.
        OSError: The run directory cannot be written to.
        ClusterError: No worker is left.
    """
    started = datetime.now(UTC)
    console = Console()
    path = run_directory_path(config.run_dir, now=started, working_dir=Path.cwd(), home=Path.home())
    check_storage(config.storage, working_dir=Path.cwd())
    is_resumed = _is_resumed(config, path)
    if (path / SUMMARY).is_file():
        return _finished_before(config, path, console)
    mirror = _open_mirror(config, is_resumed=is_resumed)
    prepared = _prepare(config, path)
    with ExitStack() as stack:
        stack.enter_context(interrupted_by_sigterm())
        run, storage, scorer = _open(config, prepared, mirror, stack, is_resumed=is_resumed)
        logger.info("results go to %s", run.path)
        reporter = Reporter(run, mirror)
        progress = SearchProgress(_plan(config, prepared), console=console, publish=reporter.publish)
        with reported(reporter, progress, console=console, resume=how_to_resume(config, run.path)):
            run.write_json(DOCUMENTS, [document_record(document) for document in prepared.documents.all])
            study = _study(config, prepared, run, storage)
            with progress:
                ledger = _ledger(run, study, scorer, progress)
                judged = _search_and_judge(config, prepared, ledger)
            summary = _summary(config, prepared, judged, progress)
            winner = next(factors for factors, result in judged if result is best_result(summary.methods))
            provenance = _provenance(config, run, started, scorer.accelerators)
            _write(run, config, prepared.model, winner, provenance)
            run.write_text(SUMMARY, summary.to_json())
    _show(summary, console)
    return summary


def _open_mirror(config: SearchConfig, *, is_resumed: bool) -> Mirror | None:
    if config.mirror is None:
        return None
    check_mirror(config.mirror, working_dir=Path.cwd())
    mirror = Mirror(config.mirror)
    mirror.check()
    if not is_resumed and mirror.holds_run():
        raise ValueError(
            f"--mirror must not hold a run yet, got {mirror.name}, which does. Choose another, or take that run up "
            "with --resume and a new --run-dir."
        )
    return mirror


def _is_resumed(config: SearchConfig, path: Path) -> bool:
    """Return whether there is a run to take up; refuse a folder in which none can be started."""
    if config.resume:
        RunDirectory.read_config(path)  # says what must hold where there is none
    if RunDirectory.holds_run(path):
        return True
    RunDirectory.check_free(path)
    return False


def _finished_before(config: SearchConfig, path: Path, console: Console) -> Summary:
    """Show what a finished run found; only its user's own word says that this is what was meant."""
    if not config.resume:
        raise ValueError(
            f"run directory {path} must be new, empty or unfinished, got one that already holds a finished run. "
            "Choose another folder with --run-dir."
        )
    logger.info("the run is finished; this is what it found")
    with RunLock(path):  # its driver may have died after the summary and before the last word
        status = read_status(path)
        if status.state != "finished":
            write_status(path, replace(status, state="finished", reason=None))
        if config.mirror is not None:
            Mirror(config.mirror).sync(path)
    summary = Summary.from_json((path / SUMMARY).read_text(encoding="utf-8"))
    _show(summary, console)
    return summary


def _prepare(config: SearchConfig, path: Path) -> _Prepared:
    model = describe_model(config.model, gguf_file=config.gguf_file, original_length=config.original_length)
    documents = build_run_documents(config, model)
    formulas = formula_factors(config, model)
    fingerprint = model_fingerprint(config.model)
    settings = resolved_config(config, model.geometry.original_length, path, model_fingerprint=fingerprint)
    # a run that was moved keeps the study of the folder and model that it began with
    before = {**settings, **(RunDirectory.read_config(path) if RunDirectory.holds_run(path) else {})}
    began_as = (Path(str(before["model"])).name, Path(str(before["run_dir"])).name)
    return _Prepared(
        path=path,
        settings=settings,
        study_name=f"{began_as[0]} to {config.target_length} tokens, {began_as[1]}",
        model=model,
        documents=documents,
        formulas=formulas,
        sampler=make_sampler(config, model, formulas[0]),  # refuses a faulty space before anything is written
    )


def _open(
    config: SearchConfig, prepared: _Prepared, mirror: Mirror | None, stack: ExitStack, *, is_resumed: bool
) -> _Opened:
    """Open run directory, storage and scorer; a new directory is made only when all else is there."""
    if is_resumed:
        run = RunDirectory.create(prepared.path, prepared.settings, resume=True, may_change=MAY_CHANGE)
        stack.enter_context(RunLock(run.path))
        if mirror is not None and mirror.holds(run.config_sha256) is False:
            raise ValueError(
                f"--mirror must be empty or hold this run, got {mirror.name} with another. Choose another --mirror."
            )
        check_documents(run.path, prepared.documents.all)
        mend_journal(run.path)
    storage = None if config.storage is None else open_storage(config.storage, run_dir=prepared.path)
    if storage is not None and not is_resumed:
        check_new(storage, prepared.study_name)
    scorer = stack.enter_context(open_scorer(config, prepared.documents.all))
    if not is_resumed:
        stack.enter_context(RunLock(prepared.path))
        run = RunDirectory.create(prepared.path, prepared.settings, resume=False)
    return _Opened(run, storage or open_storage(None, run_dir=run.path), scorer)


def _study(config: SearchConfig, prepared: _Prepared, run: RunDirectory, storage: BaseStorage) -> optuna.Study:
    original_length = prepared.model.geometry.original_length
    identity: dict[str, str | int] = {
        FINGERPRINT: str(prepared.settings[FINGERPRINT]),
        "original_length": original_length,
        "target_length": config.target_length,
        "config_sha256": run.config_sha256,
    }
    note = study_note(config, original_length, run.path)
    return open_study(prepared.study_name, storage=storage, identity=identity, note=note)


def _ledger(run: RunDirectory, study: optuna.Study, scorer: Scorer, progress: SearchProgress) -> Ledger:
    """Return the ledger with all that earlier processes measured."""
    store = MeasurementStore(run.path)
    recovered = store.recover()
    if recovered:
        logger.info("taking up the run: %d documents are measured already", len(recovered))
        progress.recovered(recovered)
    return Ledger(
        trials=Trials(study), scorer=scorer, store=store, progress=progress, measurements=dict(pairs(recovered))
    )


def _search_and_judge(
    config: SearchConfig, prepared: _Prepared, ledger: Ledger
) -> list[tuple[RescaleFactors, MethodResult]]:
    """Measure the formulas, evolve, then measure formulas and the best candidates on documents the search never saw."""
    model, documents = prepared.model, prepared.documents
    search, heldout, original = (
        batches_of(part, config.documents.batch_size)
        for part in (documents.search, documents.heldout, documents.original)
    )
    ledger.progress.phase("measuring the formulas")
    scored = measure_formulas(ledger, prepared.formulas, search)
    sampler = make_sampler(config, model, best_of(scored).factors)
    ledger.progress.phase("searching")
    found = evolve(ledger, sampler, search, schedule=config.schedule)
    if found:  # so that the comparison is fair where the search found a temperature of its own
        others = formula_factors(config, model, temperature=found[0].factors.attention_temperature)
        measured = {candidate_key(entry.factors) for entry in scored + found}
        scored += measure_formulas(
            ledger, [factors for factors in others if candidate_key(factors) not in measured], search
        )
    formula_keys = {candidate_key(entry.factors) for entry in scored}
    new = [entry for entry in found if candidate_key(entry.factors) not in formula_keys]
    finalists = scored + new[: config.num_finalists]
    factors = [finalist.factors for finalist in finalists]
    ledger.progress.phase("judging the finalists on held-out documents")
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


def _plan(config: SearchConfig, prepared: _Prepared) -> Plan:
    """Return about how many candidates and documents the run will measure; nothing but the display needs it."""
    documents = config.documents
    num_searched = sum(prepared.sampler.generation_sizes)
    num_formulas = len(prepared.formulas) + (len(config.formulas.methods) if config.algorithm == "cma" else 0)
    num_judged = num_formulas + min(config.num_finalists, num_searched)
    return Plan(
        model=config.model,
        original_length=prepared.model.geometry.original_length,
        target_length=config.target_length,
        num_candidates=num_formulas + num_searched,
        num_documents=(num_formulas + num_searched) * documents.num_search
        + num_judged * (documents.num_heldout + documents.num_original),
        seconds_before=seconds_before(prepared.path),
    )


def _summary(
    config: SearchConfig,
    prepared: _Prepared,
    judged: Sequence[tuple[RescaleFactors, MethodResult]],
    progress: SearchProgress,
) -> Summary:
    return Summary(
        model=config.model,
        original_length=prepared.model.geometry.original_length,
        target_length=config.target_length,
        seed=config.seed,
        num_document_forwards=progress.num_documents,
        seconds=round(progress.seconds, 3),
        run_directory=str(prepared.path),
        methods=tuple(result for _, result in judged),
    )


def _provenance(config: SearchConfig, run: RunDirectory, started: datetime, accelerators: Sequence[str]) -> Provenance:
    return gather(
        seed=config.seed,
        started=started,
        command=[without_password(word) for word in sys.argv],
        accelerators=accelerators,
        hashes={"config.yaml": run.config_sha256},
    )


def _write(
    run: RunDirectory, config: SearchConfig, model: ModelDescription, winner: RescaleFactors, provenance: Provenance
) -> None:
    winner = winner.with_provenance(model=config.model, config_sha256=run.config_sha256, created=provenance.gathered)
    run.write_text("factors.json", winner.to_json())
    if model.geometry.by_layer_type:
        logger.warning("no config_fragment.json: the model rotates by layer type, which one fragment cannot say")
    else:
        share = model.geometry.partial_rotary_factor
        run.write_json("config_fragment.json", huggingface_fragment(winner, partial_rotary_factor=share))
    run.write_json("provenance.json", asdict(provenance))


def _show(summary: Summary, console: Console) -> None:
    console.print(results_table(summary))
    console.print(_verdict(summary), highlight=False)
    console.print(summary.run_directory, highlight=False, soft_wrap=True)


def _verdict(summary: Summary) -> str:
    formula = best_formula(summary.methods)
    if summary.gain == 0:
        return f"No candidate is better than the formula {formula.name} on the held-out documents: the formula wins."
    return (
        f"{summary.winner}: held-out needle loss (nats) {summary.gain:.1%} below the best formula's, "
        f"{formula.name} at temperature {formula.attention_temperature:.4f}."
    )
