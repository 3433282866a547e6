"""`ropewalk verify`: whether engines rotate as Ropewalk does, each by its own code, fed with what `export` writes."""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from results.export.engine import Export, SourceModel
from results.export.engines import ENGINES
from results.export.huggingface import check_start_tokens
from results.parity import UNVERIFIED, ParityRow, parity_text
from rope.factors import RescaleFactors
from search.export_command import read_factors
from search.export_source import read_source
from search.verify_config import VerifyConfig
from workers.geometry import rope_geometry
from workers.model import LoadedModel, load_model
from workers.model_files import ModelFiles
from workers.parity.engines import PARITY_ENGINES, ParityEngine
from workers.parity.logits import (
    NUM_SPREAD,
    Contender,
    LogitsVerdict,
    Prompt,
    contenders,
    exported_model,
    gguf_writer,
    judge_logits,
    llama_cpp_logits,
    model_logits,
    reference_logits,
    spread_prompt,
    wanted_name,
)
from workers.parity.model_config import made_up_config
from workers.parity.packages import installed_package, unzipped_packages
from workers.parity.process import EngineError
from workers.parity.verification import find_packages, verify_engine, windows

CONFIG = "config.json"
LLAMA_CPP = "llama.cpp"
TEXT = Path(__file__).parents[1] / "workers/reference/tom_sawyer.txt"
"""What the prompts of logits are the beginning of."""
MOST_TOKENS = 1024
"""Longest prompt that llama.cpp reads: it chooses by its context, so that a prompt need not fill a window."""
LONGEST_CONTEXT = 4096
"""Longest context inside the original window that it is loaded with, for the sake of memory."""
WIDTH = 160
"""Columns of the table where there is no terminal."""


def run_verification(config: VerifyConfig) -> int:
    """Verify engines, print the table, and return 1 if one rotates otherwise, else 0.

    0 is no word that all rotate alike: those that could not be verified here are none that was found to differ.

    Args:
        config: What to verify.

    Raises:
        ValueError: The factors cannot be read, no engine can rotate with them, or they are for another model; an
            engine is unknown; the folder of packages is none.
    """
    names = _engine_names(config)
    folder = _packages(config)
    _, factors = read_factors(Path(config.factors).expanduser())
    check_start_tokens(factors.num_start_tokens)
    source = None if config.model is None else _source(config.model, factors)
    rows = [row for name in names if name != LLAMA_CPP for row in _rotations(name, config, factors, source, folder)]
    if config.model is not None and source is not None:
        rows += _logits(names, config, factors, source, folder)
    elif LLAMA_CPP in names:
        rows.append(_unverified(LLAMA_CPP, "its rotation shows in logits alone. Give --model FILE.gguf"))
    sys.stdout.write(parity_text(rows, width=max(100, shutil.get_terminal_size((WIDTH, 24)).columns)))
    return int(any(row.differs for row in rows))


def _engine_names(config: VerifyConfig) -> list[str]:
    known = [name for name in ENGINES if name in PARITY_ENGINES or name == LLAMA_CPP]
    for name in config.engine_names:
        if name not in known:
            raise ValueError(f"--engines must be among {', '.join(known)}, got {name}. Correct it.")
    return config.engine_names or known


def _packages(config: VerifyConfig) -> Path | None:
    if config.packages is None:
        return None
    folder = Path(config.packages).expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(f"--packages must be a folder of unzipped wheels, got {config.packages}. Check the path.")
    return folder


def _source(model: str, factors: RescaleFactors) -> SourceModel:
    if not model.endswith(".gguf"):
        return read_source(model, factors).model
    read = ModelFiles(model).config()
    geometry = rope_geometry(read)
    if (factors.rotary_dim, factors.base) != (geometry.rotary_dim, geometry.base):
        raise ValueError(
            f"factors must be for rotary_dim {geometry.rotary_dim} and base {geometry.base:g} as the model has them, "
            f"got rotary_dim {factors.rotary_dim} and base {factors.base:g}. Were they made for another model?"
        )
    written = {name: value for name, value in json.loads(read.to_json_string()).items() if name != "dtype"}
    return SourceModel(
        name=model,
        config=written,
        model_type=read.model_type,
        partial_rotary_factor=geometry.partial_rotary_factor,
    )


def _unverified(name: str, reason: str, *, version: str = "", setting: str = "") -> ParityRow:
    return ParityRow(engine=name, version=version, setting=setting, verdict=f"{UNVERIFIED}{reason}")


def _rotations(
    name: str, config: VerifyConfig, factors: RescaleFactors, source: SourceModel | None, folder: Path | None
) -> list[ParityRow]:
    engine = PARITY_ENGINES[name]
    if engine.refusal:
        return [_unverified(name, engine.refusal)]
    packages = find_packages(engine, folder)
    if not packages:
        return [_unverified(name, f"pip install {engine.distribution}, or unzip its wheel and give --packages")]
    model = source or _made_up(engine, factors)
    try:
        export = _export(name, config, factors, model)
    except ValueError as error:
        return [_unverified(name, f"it cannot be exported to: {error}", version=packages[0].version)]
    expected = windows(factors, config.mode, model.config, scaling=_scaling(model))
    return [
        row
        for package in packages
        for row in verify_engine(
            name,
            engine,
            package,
            factors,
            config=_json_file(export, CONFIG) or model.config,
            overrides=_overrides(export),
            expected=expected,
            folder=folder,
        )
    ]


def _made_up(engine: ParityEngine, factors: RescaleFactors) -> SourceModel:
    written = made_up_config(
        engine.architecture,
        rotary_dim=factors.rotary_dim,
        base=factors.base,
        original_length=factors.original_length,
    )
    return SourceModel(name="MODEL", config=written, model_type=engine.architecture, partial_rotary_factor=None)


def _export(name: str, config: VerifyConfig, factors: RescaleFactors, model: SourceModel) -> Export:
    exporter = ENGINES[name].export
    assert exporter is not None
    return exporter(factors, config.mode, model)


def _json_file(export: Export, name: str) -> dict[str, object]:
    read: dict[str, object] = json.loads(export.files.get(name, "{}"))
    return read


def _overrides(export: Export) -> dict[str, object]:
    names = [name for name in export.files if name.endswith("overrides.json")]
    return {key: value for name in names for key, value in _json_file(export, name).items()}


def _scaling(model: SourceModel) -> str:
    """Return the scaling that a model was saved with, as config.json names it."""
    scaling = model.config.get("rope_scaling") or model.config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, Mapping) else None
    return "default" if kind is None else str(kind)


def _logits(
    names: Sequence[str], config: VerifyConfig, factors: RescaleFactors, source: SourceModel, folder: Path | None
) -> list[ParityRow]:
    """Return what logits showed; a model without weights or tokenizer has none."""
    assert config.model is not None
    wanted: list[tuple[str, Callable[..., list[ParityRow]]]] = []
    if "transformers" in names:
        wanted.append(("transformers", _transformers_logits))
    if LLAMA_CPP in names and config.model.endswith(".gguf"):
        wanted.append((LLAMA_CPP, _llama_cpp_logits))
    refused = [_unverified(LLAMA_CPP, "--model must be a .gguf file for it")] if LLAMA_CPP in names else []
    rows = [] if len(wanted) == 2 or config.model.endswith(".gguf") else refused
    if not wanted:
        return rows
    try:
        loaded = load_model(config.model, dtype=config.dtype, device=config.device)
    except ValueError as error:
        return [_unverified(name, f"logits: {error}") for name, _ in wanted] + rows
    ids = loaded.tokenizer(TEXT.read_text(encoding="utf-8")[: 16 * MOST_TOKENS], add_special_tokens=False)["input_ids"]
    rotations = contenders(factors, native_scaling=loaded.geometry.native_scaling)
    for _, verify in wanted:
        rows = [*verify(config, factors, source, loaded, list(ids), rotations, folder), *rows]
    return rows


def _transformers_logits(
    config: VerifyConfig,
    factors: RescaleFactors,
    source: SourceModel,
    loaded: LoadedModel,
    ids: Sequence[int],
    rotations: Sequence[Contender],
    folder: Path | None,
) -> list[ParityRow]:
    """Return whether plain transformers, loaded with the exported config.json, gives the logits of our own patch."""
    package = installed_package("transformers", "transformers")
    assert config.model is not None
    assert package is not None
    exported = _json_file(_export("transformers", config, factors, source), CONFIG)
    model = exported_model(config.model, exported, dtype=loaded.dtype, device=loaded.device)
    original = factors.original_length
    rows = []
    for num_tokens in sorted({original, min(original + 1, factors.target_length), factors.target_length}):
        prompt = spread_prompt(ids, num_tokens)
        found = judge_logits(
            model_logits(model, prompt),
            reference_logits(loaded, rotations, prompt),
            wanted_name(num_tokens, original, config.mode),
        )
        setting = f"{len(prompt.ids)} tokens spread over"
        rows.append(_judged("transformers", package.version, setting, num_tokens, found))
    return rows


def _llama_cpp_logits(
    config: VerifyConfig,
    factors: RescaleFactors,
    source: SourceModel,
    loaded: LoadedModel,
    ids: Sequence[int],
    rotations: Sequence[Contender],
    folder: Path | None,
) -> list[ParityRow]:
    """Return whether llama.cpp, with the exported GGUF, gives the logits of transformers with our own patch."""
    found = installed_package("llama_cpp", "llama-cpp-python")
    packages = ([] if found is None else [found]) + (
        [] if folder is None else unzipped_packages("llama_cpp", "llama-cpp-python", folder)
    )
    writer = gguf_writer()
    if not packages or writer is None:
        return [_unverified(LLAMA_CPP, "pip install llama-cpp-python, or give --packages with it")]
    version, paths = packages[0].version, [packages[0].search_path] if found is None else []
    rows = []
    with tempfile.TemporaryDirectory() as place:
        gguf = Path(place, "exported.gguf")
        try:
            writer(Path(source.name), gguf, factors, config.mode, force=True, in_place=False)
        except ValueError as error:
            return [_unverified(LLAMA_CPP, f"it cannot be exported to: {error}", version=version)]
        for context_length, num_tokens in _contexts(factors):
            setting = f"-c {context_length}"
            prompt = Prompt(list(ids[:num_tokens]), list(range(num_tokens)))
            try:
                logits = llama_cpp_logits(gguf, prompt, context_length=context_length, search_paths=paths)
            except EngineError as error:
                rows.append(_unverified(LLAMA_CPP, str(error), version=version, setting=setting))
                continue
            references = reference_logits(loaded, rotations, prompt)
            judged = judge_logits(logits, references, wanted_name(context_length, factors.original_length, config.mode))
            rows.append(_judged(LLAMA_CPP, version, setting, num_tokens, judged))
    return rows


def _judged(engine: str, version: str, setting: str, num_tokens: int, found: LogitsVerdict) -> ParityRow:
    return ParityRow(
        engine=engine,
        version=version,
        setting=setting,
        num_tokens=num_tokens,
        factors=found.factors,
        logits_ratio=found.ratio,
        verdict=found.verdict,
    )


def _contexts(factors: RescaleFactors) -> list[tuple[int, int]]:
    """Return contexts on both sides of the border, and the tokens of a prompt in each.

    The short one is not rounded down to a multiple of 256 as llama.cpp rounds up: what then happens should show.
    """
    original = factors.original_length
    inside = min(original, LONGEST_CONTEXT)
    beyond = original + NUM_SPREAD
    return [(inside, min(inside, MOST_TOKENS // 2)), (beyond, min(beyond, MOST_TOKENS))]
