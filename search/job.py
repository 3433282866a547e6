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

from needles.document import NeedleDocument
from results.export.huggingface import huggingface_fragment
from results.measurement import candidate_key
from results.mirror import Mirror
from results.provenance import Provenance, gather
from results.run_directory import RunDirectory
from results.run_lock import RunLock
from results.status import read_status, write_status
from results.store import MeasurementStore
from results.summary import SUMMARY, Summary
from results.urls import without_password
from rope.factors import RescaleFactors
from search.config import FINGERPRINT, MAY_CHANGE, SearchConfig, resolved_config
from search.evolution import best_formula_of, evolve, measure_formulas
from search.formulas import WARMER, formula, formula_factors, warmer
from search.journal import mend_journal
from search.judging import Judged, Splits, judge, measure_picks
from search.ledger import Ledger, Scored, ranked
from search.objectives import Objectives
from search.own_window import check_own_window
from search.panels import Panels, common_batch_size
from search.place import check_mirror, check_storage, run_directory_path
from search.precision import with_precision
from search.preparation import (
    DOCUMENTS,
    RunDocuments,
    build_run_documents,
    check_budget,
    check_documents,
    document_record,
    make_sampler,
    model_fingerprint,
    open_scorer,
    panels_of,
)
from search.progress import Plan, SearchProgress
from search.reporting import Reporter, how_to_resume, reported, seconds_before, study_note
from search.samplers.joint import JointSampler
from search.stopping import interrupted_by_sigterm
from search.study import Trials, check_new, open_storage, open_study
from search.verdict import show
from workers.model import ModelDescription, describe_model
from workers.scorer import Scorer

logger = logging.getLogger(__name__)


class _Prepared(NamedTuple):
    """What is known of a run before anything is measured or written."""

    path: Path
    settings: dict[str, object]
    study_name: str
    model: ModelDescription
    documents: RunDocuments
    panels: Panels
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
    config = with_precision(config, path)
    prepared = _prepare(config, path)
    with ExitStack() as stack:
        stack.enter_context(interrupted_by_sigterm())
        opened = _open(config, prepared, mirror, stack, is_resumed=is_resumed)
        run = opened.run
        logger.info("results go to %s", run.path)
        reporter = Reporter(run, mirror)
        progress = SearchProgress(_plan(config, prepared), console=console, publish=reporter.publish)
        with reported(reporter, progress, console=console, resume=how_to_resume(config, run.path)):
            run.write_json(DOCUMENTS, [document_record(document) for document in prepared.documents.all])
            study = _study(config, prepared, run, opened.storage)
            with progress:
                ledger = _ledger(config, prepared, opened, study, progress)
                judged = _search_and_judge(config, prepared, ledger)
            summary = _summary(config, prepared, judged, ledger)
            provenance = _provenance(config, run, started, opened.scorer.accelerators)
            _write(run, config, prepared.model, judged.winner, provenance)
            run.write_text(SUMMARY, summary.to_json())
    show(summary, console)
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
    show(summary, console)
    return summary


def _prepare(config: SearchConfig, path: Path) -> _Prepared:
    model = describe_model(config.model, gguf_file=config.gguf_file, original_length=config.original_length)
    documents = build_run_documents(config, model)
    formulas = formula_factors(config, model)
    check_budget(config, len(formulas))
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
        panels=panels_of(config, documents),
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
    directions = ("minimize",) * len(config.objective_names)
    return open_study(prepared.study_name, storage=storage, identity=identity, note=note, directions=directions)


def _ledger(
    config: SearchConfig, prepared: _Prepared, opened: _Opened, study: optuna.Study, progress: SearchProgress
) -> Ledger:
    """Return the ledger with all that earlier processes measured."""
    store = MeasurementStore(opened.run.path)
    recovered = store.recover()
    if recovered:
        logger.info("taking up the run: %d documents are measured already", len(recovered))
        progress.recovered(recovered)
    return Ledger(
        trials=Trials(study),
        scorer=opened.scorer,
        store=store,
        progress=progress,
        panels=_batched(config, prepared.panels, opened.scorer),
        objectives=Objectives(
            names=config.objective_names,
            aggregate=config.aggregate,
            original=frozenset(prepared.panels.always),
            num_needles=config.documents.num_needles,
        ),
        racing=config.race if config.races else None,
        measurements=recovered,
    )


def _batched(config: SearchConfig, panels: Panels, scorer: Scorer) -> Panels:
    """Return the panels with as many documents in one forward as the workers are fastest with."""
    if config.documents.batch_size is not None:
        return panels
    return replace(panels, batch_size=common_batch_size(scorer.speeds, config.target_length))


def _search_and_judge(config: SearchConfig, prepared: _Prepared, ledger: Ledger) -> Judged:
    """Measure the formulas, search, and judge what was found."""
    ledger.progress.phase("measuring the formulas")
    _measure_unscaled(config, prepared, ledger)
    panels = ledger.panels
    documents = panels.documents[: config.num_formula_documents] + panels.always
    formulas = measure_formulas(ledger, prepared.formulas, documents)
    formulas += measure_formulas(ledger, _new(warmer(best_formula_of(ledger, formulas)), formulas), documents)
    sampler = make_sampler(config, prepared.model, best_formula_of(ledger, formulas))
    ledger.progress.phase("searching")
    found = evolve(ledger, sampler, schedule=config.schedule, budget=config.budget)
    # where generations have documents of their own, losses of two of them cannot be compared
    tried = [] if config.num_fresh_documents else found
    picks = sampler.picks(ledger.trials.searched(sampler)) + [entry.factors for entry in tried]
    searched = measure_picks(ledger, _new(picks, formulas)[: config.num_finalists], documents)
    if searched:  # so that the comparison is fair where the search found a temperature of its own
        others = formula_factors(config, prepared.model, temperature=searched[0].factors.attention_temperature)
        able = {entry.factors.method for entry in ranked(formulas)}
        rivals = [factors for factors in _new(others, formulas) if factors.method in able]
        # without a race, in which the searched ones would lead: what is not whole is not shown beside them
        formulas += measure_formulas(ledger, rivals, documents, races=False)
    splits = Splits(
        search=panels.documents[: config.num_formula_documents],
        validation=_ids(prepared.documents.validation),
        heldout=_ids(prepared.documents.heldout),
        original=_ids(prepared.documents.original),
    )
    return judge(
        ledger,
        formulas=formulas,
        searched=searched,
        tried=tried if panels.of(0) == documents else [],
        num_finalists=config.num_finalists,
        splits=splits,
    )


def _measure_unscaled(config: SearchConfig, prepared: _Prepared, ledger: Ledger) -> None:
    """Measure what the unscaled model does at the original length, where the search depends on it."""
    unscaled = formula("none", config, prepared.model)
    own_window, short = prepared.documents.own_window, prepared.documents.short
    if own_window:
        found = ledger.measurements_on(unscaled, _ids(own_window))
        check_own_window(found, num_needles=config.documents.num_needles, length=own_window[0].length)
    if short:
        ledger.objectives = ledger.objectives.relative_to(ledger.measurements_on(unscaled, _ids(short)))


def _ids(documents: Sequence[NeedleDocument]) -> tuple[str, ...]:
    return tuple(document.id for document in documents)


def _new(candidates: Sequence[RescaleFactors], measured: Sequence[Scored]) -> list[RescaleFactors]:
    """Return distinct candidates that are not measured yet, in their order."""
    keys = {candidate_key(entry.factors) for entry in measured}
    distinct = {candidate_key(factors): factors for factors in candidates}
    return [factors for key, factors in distinct.items() if key not in keys]


def _plan(config: SearchConfig, prepared: _Prepared) -> Plan:
    """Return about how many candidates and documents the run will measure; nothing but the display needs it."""
    documents = config.documents
    num_searched = sum(prepared.sampler.generation_sizes)
    num_named = len(config.formulas.methods) + len(config.formulas.files)
    num_formulas = len(prepared.formulas) + len(WARMER) + num_named
    num_judged = num_named + 2 * config.num_finalists
    num_search = num_formulas * config.num_formula_documents + num_searched * (
        config.num_per_candidate + len(prepared.documents.short)
    )
    num_judging = documents.num_validation + documents.num_heldout + documents.num_original
    return Plan(
        model=config.model,
        original_length=prepared.model.geometry.original_length,
        target_length=config.target_length,
        num_candidates=num_formulas + num_searched,
        num_documents=num_search + num_judged * num_judging,
        seconds_before=seconds_before(prepared.path),
    )


def _summary(config: SearchConfig, prepared: _Prepared, judged: Judged, ledger: Ledger) -> Summary:
    return Summary(
        model=config.model,
        original_length=prepared.model.geometry.original_length,
        target_length=config.target_length,
        seed=config.seed,
        num_document_forwards=ledger.progress.num_documents,
        num_search_forwards=ledger.spent,
        seconds=round(ledger.progress.seconds, 3),
        run_directory=str(prepared.path),
        methods=tuple(result for _, result in judged.results),
        front=judged.front,
        speed=ledger.progress.speed,
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
