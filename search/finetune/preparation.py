"""What a fine-tuning needs before anything is measured or written: checked, cheap things first."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from results.export.engine import SourceModel
from results.export.lists import exported_lists
from results.measurement import candidate_key
from results.run_directory import RunDirectory
from rope.factors import RescaleFactors, load_factors
from search.export_command import FACTORS
from search.finetune.config import FinetuneConfig
from search.finetune.outcome import WindowFactors, Yardstick, build_yardstick
from search.preparation import model_fingerprint
from workers.model import ModelDescription, describe_model
from workers.model_files import ModelFiles
from workers.tuning.documents import special_tokens, tokenise
from workers.tuning.lora import check_lora_available
from workers.tuning.mixture import PackStream
from workers.tuning.mixture_config import MixtureConfig

_BYTES_TRAINED = 12
"""Bytes of a checkpoint for every number that is trained: itself and AdamW's two averages, float32."""
_LORA_SHARE = 0.05  # of the numbers that are trained, at the most that anybody takes


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is known before the first measurement."""

    model: ModelDescription
    """Geometry and tokenizer."""
    factors: WindowFactors
    """With what the model rotates in either window."""
    mixture: MixtureConfig
    """Resolved."""
    packs: PackStream
    """What it is trained on."""
    yardstick: Yardstick
    """What it is measured on."""
    facts: Mapping[str, object]
    """What a run that is taken up must share with its beginning, whatever its files are called."""


def prepare(config: FinetuneConfig, run_dir: Path) -> Prepared:
    """Check a fine-tuning, tokenise its data, and build what it is measured on. Weights are not read.

    Args:
        config: The whole fine-tuning.
        run_dir: Where its results will go.

    Raises:
        ValueError: Something that the user gave cannot be used.
        OSError: The folder of the tokens cannot be written to.
    """
    search, factors = _factors(config)
    files = ModelFiles(config.model, config.gguf_file)
    model = describe_model(
        config.model, gguf_file=config.gguf_file, original_length=_original_length(config, search, files, factors)
    )
    window_factors = _window_factors(factors, files.config(), model)
    mixture = config.mixture.resolve(
        original_length=model.geometry.original_length, target_length=factors.target_length
    )
    if config.training.lora is not None:
        check_lora_available()
    _check_disk(config, files.config(), run_dir)
    yardstick = _yardstick(config, search, model, factors)
    packs = make_packs(config, mixture, model.tokenizer)
    return Prepared(
        model=model,
        factors=window_factors,
        mixture=mixture,
        packs=packs,
        yardstick=yardstick,
        facts={
            "model_fingerprint": model_fingerprint(config.model),
            "candidate": candidate_key(factors),
            "packs": packs.fingerprint(),
            "yardstick": yardstick.fingerprint,
        },
    )


def _factors(config: FinetuneConfig) -> tuple[Mapping[str, object], RescaleFactors]:
    """Return the settings of the search whose factors they are, empty where it is not known, and the factors."""
    path = Path(config.factors).expanduser()
    folder = path if path.is_dir() else path.parent
    factors = load_factors(folder / FACTORS if path.is_dir() else path)
    is_of_run = RunDirectory.holds_run(folder) and (path.is_dir() or path.name == FACTORS)
    return (RunDirectory.read_config(folder) if is_of_run else {}), factors


def _original_length(
    config: FinetuneConfig, search: Mapping[str, object], files: ModelFiles, factors: RescaleFactors
) -> int | None:
    """Return the window that the user or the search said, else the factors' where the model says none; None for its."""
    said = config.original_length or search.get("original_length")
    if isinstance(said, int):
        return said
    return None if files.say_their_window() else factors.original_length


def _window_factors(factors: RescaleFactors, config: PreTrainedConfig, model: ModelDescription) -> WindowFactors:
    geometry = model.geometry
    for name in ("rotary_dim", "base", "original_length"):
        if getattr(factors, name) != getattr(geometry, name):
            raise ValueError(
                f"--factors must be for {name} {getattr(geometry, name):g} as the model has it, got "
                f"{getattr(factors, name):g}. Were they made for another model?"
            )
    if factors.target_length <= factors.original_length:
        raise ValueError(
            f"--factors must be for more than the original window of {factors.original_length} tokens, got "
            f"{factors.target_length}. Search for a longer window."
        )
    if geometry.by_layer_type or config.get_text_config() is not config:
        raise ValueError(
            "a fine-tuned model must rotate alike in all layers, so that its config.json can say the factors, got a "
            f"{config.model_type} configuration. Choose another model."
        )
    lists = exported_lists(factors, "dual", source_model(config.to_dict(), model))
    short = replace(factors, short_values=None, short_attention_temperature=1.0).with_values(
        lists.short, method="short window"
    )
    return WindowFactors(long=factors, short=short.with_temperature(lists.short_temperature))


def source_model(config: Mapping[str, object], model: ModelDescription) -> SourceModel:
    """Return what an export to transformers needs to know of a model.

    Args:
        config: Its config.json.
        model: Its geometry.
    """
    return SourceModel(
        name="the model",
        config=config,
        model_type=str(config.get("model_type", "")),
        partial_rotary_factor=model.geometry.partial_rotary_factor,
    )


def _check_disk(config: FinetuneConfig, model: PreTrainedConfig, run_dir: Path) -> None:
    """Refuse a disk on which the checkpoints and the model would not fit together."""
    with torch.device("meta"):
        num_numbers: int = AutoModelForCausalLM.from_config(model).num_parameters()  # type: ignore[no-untyped-call]
    num_trained = num_numbers * (1.0 if config.training.lora is None else _LORA_SHARE)
    # One more than is kept: the oldest goes when the newest is whole
    needed = num_trained * _BYTES_TRAINED * (config.training.num_checkpoints + 1) + 4 * num_numbers
    folder = next(parent for parent in (run_dir, *run_dir.parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"the disk of the run directory must have {needed / 1e9:.1f} GB free for the model and "
            f"{config.training.num_checkpoints + 1} checkpoints, got {free / 1e9:.1f} GB in {folder}. Free some, take "
            "another --run-dir, or lower training.num_checkpoints."
        )


def _yardstick(
    config: FinetuneConfig, search: Mapping[str, object], model: ModelDescription, factors: RescaleFactors
) -> Yardstick:
    corpus = config.measure.corpus or str(search.get("corpus") or "")
    if not corpus:
        raise ValueError(
            "a fine-tuning must be measured on text that is no part of --data, got none and no search to take it from. "
            "Give a file or a folder as --measure.corpus."
        )
    documents = search.get("documents")
    column = documents.get("column") if isinstance(documents, Mapping) and not config.measure.corpus else None
    return build_yardstick(
        config.measure,
        model,
        corpus=corpus,
        column=config.measure.column or str(column or "text"),
        target_length=factors.target_length,
        seed=config.seed,
    )


def tokens_folder(config: FinetuneConfig) -> Path:
    """Return where tokenised data is kept, for this run and others.

    Args:
        config: The whole fine-tuning.
    """
    if config.tokens is not None:
        return Path(config.tokens).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "ropewalk" / "tokens"


def make_packs(config: FinetuneConfig, mixture: MixtureConfig, tokenizer: PreTrainedTokenizerBase) -> PackStream:
    """Return the packs of a fine-tuning, tokenised where they are not yet.

    Args:
        config: The whole fine-tuning.
        mixture: Its mixture, resolved.
        tokenizer: The model's.

    Raises:
        ValueError: The data cannot be read, or holds no document for a window.
        OSError: The tokens cannot be written.
    """
    documents = tokenise(
        config.sources,
        tokenizer,
        tokens_folder(config),
        column=config.column,
        num_processes=config.num_processes,
        skip_unreadable=config.skip_unreadable,
    )
    num_packs = config.training.num_steps * config.training.micro_batches_per_step * mixture.micro_batch_size
    return PackStream(documents, mixture, special_tokens(tokenizer), config.seed, num_packs=num_packs)
