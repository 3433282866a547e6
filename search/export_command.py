"""`ropewalk export`: writes what an engine reads, and says what to type and what is lost."""

import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from results.atomic_file import write_text
from results.export.engine import Engine, Export, SourceModel
from results.export.engines import known_engine
from results.export.source_files import other_files, place
from results.export.transformers_config import export_transformers
from results.summary import SUMMARY, MethodResult, Summary
from rope.factors import RescaleFactors
from search.export_config import ExportConfig
from search.export_source import read_source

FACTORS = "factors.json"
FRAGMENT = "config_fragment.json"
MODELFILE = "Modelfile"


def run_export(config: ExportConfig) -> None:
    """Export factors, and print files, steps and notes.

    Nothing is written unless all can be: engine, factors, model and target are checked first. Each file is there whole
    or not at all.

    Args:
        config: What to export, and where to.

    Raises:
        ValueError: The engine is unknown or cannot express the factors, the factors are for another model, or a file is
            there already and is not to be replaced.
        OSError: The disk is full.
    """
    engine = known_engine(config.to)
    run, factors = read_factors(Path(config.factors).expanduser())
    cost = [] if config.mode == "dual" and not engine.always_long else [cost_note(run, factors)]
    if config.is_gguf:
        names, steps, notes = _write_gguf(config, factors)
    else:
        names, steps, notes = _write_texts(config, engine, factors)
    folder = "" if config.out is None else shlex.quote(str(Path(config.out).expanduser()))  # no shell expands --out=~
    lines = [
        f"{engine.title}, {config.mode}: {factors.original_length} to {factors.target_length} tokens, "
        f"{len(factors.values)} factors, attention temperature {factors.attention_temperature:.6g}",
        *(f"wrote {name}" for name in names),
        *(f"note: {note}" for note in [*notes, *cost]),
        *(f"next: {step.replace('{folder}', folder)}" for step in steps),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def read_factors(path: Path) -> tuple[Path | None, RescaleFactors]:
    """Return factors, and the run directory that they come from, where they do.

    Args:
        path: File, or run directory of a search.

    Raises:
        ValueError: They cannot be read.
    """
    if path.is_dir():
        return path, RescaleFactors.load(path / FACTORS)
    return (path.parent if path.name == FACTORS else None), RescaleFactors.load(path)


def cost_note(run: Path | None, factors: RescaleFactors) -> str:
    """Return what the long factors cost inside the original window, where the run measured these very factors.

    Args:
        run: Run directory.
        factors: Its factors.

    Raises:
        ValueError: Its summary is damaged.
    """
    start = f"the long factors inside {factors.original_length} tokens cost, by needle perplexity there"
    unknown = f"{start}: not measured"
    if run is None or not (run / SUMMARY).is_file():
        return unknown
    summary = Summary.from_json((run / SUMMARY).read_text(encoding="utf-8"))
    found = summary.winning_result
    unscaled = [result for result in summary.methods if result.name == "none" and _is_measured(result)]
    if not _is_winner(run, summary, factors) or not _is_measured(found) or not unscaled:
        return unknown
    own = min(unscaled, key=lambda result: abs(result.attention_temperature - 1.0))
    return f"{start}: {found.original_perplexity:.4f}, the unscaled model {own.original_perplexity:.4f}"


def _is_winner(run: Path, summary: Summary, factors: RescaleFactors) -> bool:
    """Return whether factors are those that won; a file of that name may have been replaced or edited since."""
    won = summary.winning_result
    theirs = (won.name, won.critical_dim, won.attention_temperature, summary.original_length, summary.target_length)
    ours = (factors.method, factors.critical_dim, factors.attention_temperature)
    if theirs != (*ours, factors.original_length, factors.target_length):
        return False
    if not (run / FRAGMENT).is_file():
        return True
    fragment = json.loads((run / FRAGMENT).read_text(encoding="utf-8"))
    return bool(fragment["rope_scaling"]["long_factor"] == list(factors.values))


def _is_measured(result: MethodResult) -> bool:
    return not math.isnan(result.original_perplexity)


def _write_texts(
    config: ExportConfig, engine: Engine, factors: RescaleFactors
) -> tuple[list[str], Sequence[str], Sequence[str]]:
    source = None if config.model is None else read_source(config.model, factors)
    export = _exported(config, engine, factors, None if source is None else source.model)
    assert config.out is not None
    folder = Path(config.out).expanduser()
    if source is not None and folder.resolve() == source.folder.resolve():
        raise ValueError(f"--out must be another folder than the model's own, got {config.out}. Choose a new one.")
    others = [] if source is None or config.weights == "none" else other_files(source.folder, export.files)
    _check_absent(folder, [*export.files, *(path.name for path in others)], force=config.force)
    _write_files(folder, export.files, others, by_link=config.weights == "link")
    names = [str(folder / name) for name in [*export.files, *(path.name for path in others)]]
    steps = list(export.steps)
    if source is not None and config.weights == "none" and "config.json" in export.files:
        steps.insert(0, "put the model's other files beside {folder}/config.json, or export with --weights link")
    return names, steps, export.notes


def _exported(config: ExportConfig, engine: Engine, factors: RescaleFactors, model: SourceModel | None) -> Export:
    if config.short_temperature == "patch":
        return export_transformers(factors, config.mode, model, patches_model=True)
    assert engine.export is not None
    return engine.export(factors, config.mode, model)


def _check_absent(folder: Path, names: Sequence[str], *, force: bool) -> None:
    there = [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]
    if there and not force:
        raise ValueError(
            f"--out must hold none of the files that are written, got {folder} with {there[0]}. "
            "Choose another folder, or add --force to replace it."
        )


def _write_files(folder: Path, texts: Mapping[str, str], others: Sequence[Path], *, by_link: bool) -> None:
    _make(folder)
    try:
        for path in others:
            place(path, folder / path.name, by_link=by_link)
        for name, text in texts.items():
            write_text(folder / name, text)
    except (PermissionError, IsADirectoryError) as error:
        raise _unwritable(folder, error) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder for what is written in the block, and take away what was made where nothing was written."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    _make(folder)
    try:
        yield
    except (ValueError, OSError):
        with suppress(OSError):  # one that holds something stays
            for path in missing:
                path.rmdir()
        raise


def _unwritable(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"--out must be a folder that can be written to, got {folder}: {error.strerror}. Choose another folder."
    )


def _write_gguf(config: ExportConfig, factors: RescaleFactors) -> tuple[list[str], Sequence[str], Sequence[str]]:
    from results.export.gguf_file import write_gguf  # imports gguf, which no other engine needs

    assert config.model is not None
    source = Path(config.model).expanduser()
    if config.in_place:
        told = write_gguf(source, source, factors, config.mode, force=config.force, in_place=True)
        return [str(source)], told.steps, told.notes
    assert config.out is not None
    folder = Path(config.out).expanduser()
    target = folder / source.name
    texts: dict[str, str] = {}
    engine: Literal["llama.cpp", "ollama"] = "llama.cpp"
    if config.to == "ollama":
        engine = "ollama"
        texts = {MODELFILE: f"FROM ./{source.name}\nPARAMETER num_ctx {factors.target_length}\n"}
    _check_absent(folder, [target.name, *texts], force=config.force)
    with _made(folder):
        try:
            told = write_gguf(source, target, factors, config.mode, force=config.force, in_place=False, engine=engine)
        except PermissionError as error:
            raise _unwritable(folder, error) from error
        _write_files(folder, texts, [], by_link=False)
    created = [f"ollama create NAME -f {{folder}}/{name}" for name in texts]
    return [str(target), *(str(folder / name) for name in texts)], [*told.steps, *created], told.notes
