"""Factors in a GGUF file: written into a copy of a model for llama.cpp and what is built on it, and read back."""

import errno
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import gguf
import numpy as np

from results.atomic_file import replacing
from results.export.engine import Mode
from results.export.gguf_architectures import check_architecture
from results.export.gguf_container import GgufFile, copy_size, open_gguf, write_copy
from results.export.gguf_notes import llama_cpp_notes, llama_cpp_steps, ollama_notes
from rope.factors import RescaleFactors

LONG = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FACTORS_LONG] + ".weight"
SHORT = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT] + ".weight"
ALWAYS = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight"
"""Factors at every length, as Llama 3.1's scaling is written; llama.cpp prefers them to both lists."""
TYPE = "rope.scaling.type"
FACTOR = "rope.scaling.factor"
OLD_FACTOR = "rope.scale_linear"
ORIGINAL_LENGTH = "rope.scaling.original_context_length"
TEMPERATURE = "rope.scaling.attn_factor"
TARGET_LENGTH = "context_length"
DEFAULT_BASE = 10000.0
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class Told(NamedTuple):
    """What the user of a written file should know."""

    steps: tuple[str, ...]
    """What to type, a line each."""
    notes: tuple[str, ...]
    """What was replaced, then what the engine does otherwise than Ropewalk, a sentence each."""


class _Lists(NamedTuple):
    """What a file is given; the lists in 32-bit floats."""

    long: tuple[float, ...]
    short: tuple[float, ...]
    short_temperature: float
    """What should multiply cos and sin with the short list."""
    short_origin: str = ""
    """What in the file the short list was made of; empty where it is none of the file's."""


def write_gguf(
    source: Path,
    target: Path,
    factors: RescaleFactors,
    mode: Mode,
    *,
    force: bool,
    in_place: bool,
    engine: Literal["llama.cpp", "ollama"] = "llama.cpp",
) -> Told:
    """Write a copy of a GGUF model that rotates with the factors; every weight is copied as it is.

    The copy needs the disk space of the model, and little memory. It appears whole or not at all. Every key of the
    file's own RoPE scaling is replaced; no other key changes but the context length.

    In mode dual the short list is `factors.short_values`, or else the rotation that the file had inside its original
    window: its own short list, Llama 3.1's rope_freqs, or ones, each times its linear factor.

    Args:
        source: GGUF file of a model.
        target: File to write.
        factors: What to write, rounded to 32-bit floats.
        mode: dual: long and short list; pinned: the long list as both.
        force: Whether an existing target, and a scaling that the file has already, may be replaced.
        in_place: Whether source and target may be the same file; it is still replaced whole.
        engine: Whose user is told what to type.

    Returns:
        What to type, and what the engine does otherwise than Ropewalk.

    Raises:
        ValueError: The source is no whole little-endian GGUF file, of an architecture that does not rotate with two
            lists, already scaled, by YaRN in mode dual, or for other factors; the factors keep start tokens or do not
            fit 32-bit floats; the target exists, is the source, cannot be written, or does not fit the disk.
        OSError: The disk failed while the file was written.

    Source: ggml-org/llama.cpp 0c1e57098, `src/llama-model.cpp`, `src/llama-context.cpp`.
    """
    _check_target(source, target, force=force, in_place=in_place)
    model = open_gguf(source)
    check_architecture(model.architecture)
    _check_factors(model, factors)
    scaling = _scaling(model)
    if scaling and not force:
        raise ValueError(
            f"{source}: the GGUF must not be scaled, got one that is already scaled ({scaling}). "
            "--force replaces its scaling; the unscaled model is the better source."
        )
    lists = _lists(model, factors, mode)
    target = target.resolve()
    _check_space(model, target)
    _write(model, target, factors, lists)
    replaced = _replaced(model, scaling, lists)
    if engine == "ollama":
        return Told((), (*replaced, *ollama_notes(factors, mode, lists.short_temperature)))
    return Told(
        llama_cpp_steps(target, factors, mode, lists.short_temperature),
        (*replaced, *llama_cpp_notes(factors, mode, lists.short_temperature)),
    )


def read_gguf_factors(path: str | Path) -> RescaleFactors:
    """Return the factors in a GGUF file: its long and short list, or the one list that it uses at every length.

    llama.cpp multiplies cos and sin by the same attention temperature inside and beyond the original window, so both
    temperatures are the file's. A file whose one list serves every length does not say which window it had before:
    its original length is then its context length, and scale 1.

    Args:
        path: GGUF file; its architecture may be any.

    Returns:
        Factors of method "imported"; the 32-bit floats of the file, exactly. short_values is None where they are ones.

    Raises:
        ValueError: The file is no whole little-endian GGUF file, has no list of factors, multiplies them by a linear
            factor, or has a list that no model rotates with; the message begins with the path.
    """
    model = open_gguf(Path(path))
    long, short, always = (model.float_list(name) for name in (LONG, SHORT, ALWAYS))
    values = always or long
    if values is None:
        raise ValueError(
            f"{path}: the GGUF must hold factors ({LONG} or {ALWAYS}), got none"
            f"{_named_scaling(model)}. Give a model that was exported with factors."
        )
    if _linear_factor(model) != 1:
        raise ValueError(
            f"{path}: a GGUF with lists of factors must have no {FACTOR}, got {_linear_factor(model):g}, which "
            "llama.cpp applies on top of them. Export the model again."
        )
    other = always or short
    context_length = model.number(TARGET_LENGTH)
    original_length = model.number(ORIGINAL_LENGTH) or context_length
    if not context_length or not original_length:
        raise ValueError(f"{path}: the GGUF must say its {TARGET_LENGTH}, got none. Is it a model?")
    temperature = model.number(TEMPERATURE) or 1.0
    try:
        return RescaleFactors(
            values=values,
            rotary_dim=2 * len(values),
            base=model.number("rope.freq_base") or DEFAULT_BASE,
            original_length=int(original_length),
            target_length=int(context_length),
            attention_temperature=temperature,
            short_values=None if other is None or set(other) == {1.0} else other,
            short_attention_temperature=temperature,
            method="imported",
            provenance={
                "file": Path(path).name,
                "architecture": model.architecture,
                "tensor": ALWAYS if always else LONG,
            },
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_target(source: Path, target: Path, *, force: bool, in_place: bool) -> None:
    if target.exists() and source.exists() and target.samefile(source):
        if not in_place:
            raise ValueError(
                f"{target}: the target must be another file than the model, got the same. "
                "Name another, or allow it with --in-place."
            )
    elif target.exists() and not force:
        raise ValueError(f"{target}: the target must not exist, got a file that does. --force replaces it.")


def _check_space(model: GgufFile, target: Path) -> None:
    if not target.parent.is_dir():
        raise ValueError(
            f"{target}: the target must be in a folder, got {target.parent}, which is none. Make it first."
        )
    free, wanted = shutil.disk_usage(target.parent).free, copy_size(model)
    if free < wanted:
        raise ValueError(
            f"{target}: the folder must have {wanted / 1e9:.1f} GB free for a copy of the model, got {free / 1e9:.1f}. "
            "Choose another disk."
        )


def _check_factors(model: GgufFile, factors: RescaleFactors) -> None:
    rotary_dim = _rotary_dim(model)
    base = model.number("rope.freq_base") or DEFAULT_BASE
    if factors.rotary_dim != rotary_dim:
        raise ValueError(
            f"factors must have rotary_dim {rotary_dim} for {model.path}, got {factors.rotary_dim}. "
            "Were they made for another model?"
        )
    if np.float32(factors.base) != np.float32(base):
        raise ValueError(
            f"factors must have base {base:g} for {model.path}, got {factors.base:g}. Were they made for another model?"
        )
    if factors.num_start_tokens:
        raise ValueError(
            f"exported factors must have num_start_tokens 0, got {factors.num_start_tokens}: llama.cpp does not keep "
            "the first tokens unscaled. Search without start tokens."
        )


def _rotary_dim(model: GgufFile) -> int:
    dim = model.number("rope.dimension_count") or model.number("attention.key_length")
    if dim is None:
        width, heads = model.number("embedding_length"), model.number("attention.head_count")
        if not width or not heads:
            raise ValueError(
                f"{model.path}: the GGUF must say its rope.dimension_count, got none. Convert the model anew."
            )
        dim = width // heads
    return int(dim)


def _linear_factor(model: GgufFile) -> float:
    return model.number(FACTOR) or model.number(OLD_FACTOR) or 1.0


def _scaling(model: GgufFile) -> str:
    """Return what scales a file already, in words; rope_freqs is no such thing, but the model's own rotation."""
    lists = [name for name in (LONG, SHORT) if name in model.tensors]
    kind = model.value(TYPE)
    if lists:
        return " and ".join(lists)
    if kind == "yarn" or _linear_factor(model) != 1:
        return f"{kind or 'linear'}, factor {_linear_factor(model):g}"
    return ""


def _named_scaling(model: GgufFile) -> str:
    scaling = _scaling(model)
    return f", and is scaled otherwise ({scaling})" if scaling else ""


def _lists(model: GgufFile, factors: RescaleFactors, mode: Mode) -> _Lists:
    long = _as_float32(factors.values)
    if mode == "pinned":
        return _Lists(long, long, factors.attention_temperature)
    if factors.short is not None:
        return _Lists(long, _as_float32(factors.short.values), factors.short_attention_temperature)
    return _own_rotation(model, long)


def _own_rotation(model: GgufFile, long: tuple[float, ...]) -> _Lists:
    """Return as the short list how a file rotates inside its original window, at the temperature that it has there."""
    if model.value(TYPE) == "yarn":
        raise ValueError(
            f"{model.path}: the GGUF's own scaling must be none, linear or lists to be kept inside its window, got "
            "yarn. Use --mode pinned, or give factors that bring short_values."
        )
    linear, short, always = _linear_factor(model), model.float_list(SHORT), model.float_list(ALWAYS)
    # A pinned file does not tell any more how it rotated before, nor at which temperature
    is_pinned = short is not None and short == model.float_list(LONG)
    temperature = 1.0 if is_pinned else model.number(TEMPERATURE) or 1.0
    found = [(SHORT, short)] if short and not is_pinned else [(ALWAYS, always)] if always else []
    origin = [name for name, _ in found] + ([] if linear == 1 else [f"linear, factor {linear:g}"])
    own = found[0][1] if found else None
    values = [value * linear for value in own or (1.0,) * len(long)]
    return _Lists(long, _as_float32(tuple(values)), temperature, " times ".join(origin))


def _as_float32(values: tuple[float, ...]) -> tuple[float, ...]:
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.asarray(values).astype(np.float32)
    wrong = np.flatnonzero(~((rounded > 0) & np.isfinite(rounded)))
    if wrong.size:
        raise ValueError(
            f"factors in a GGUF must fit 32-bit floats, got {values[wrong[0]]:g} (pair {wrong[0]}). Check its origin."
        )
    return tuple(rounded.tolist())


def _write(model: GgufFile, target: Path, factors: RescaleFactors, lists: _Lists) -> None:
    prefix = f"{model.architecture}."
    own = [key for key in model.packed_keys if key.startswith(f"{prefix}rope.scaling.") or key == prefix + OLD_FACTOR]
    try:
        with replacing(target) as temporary:
            write_copy(
                model,
                temporary,
                without=[*own, ALWAYS],
                keys={
                    prefix + TARGET_LENGTH: factors.target_length,
                    prefix + TYPE: "longrope",
                    prefix + ORIGINAL_LENGTH: factors.original_length,
                    prefix + TEMPERATURE: factors.attention_temperature,
                },
                tensors={LONG: lists.long, SHORT: lists.short},
            )
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise ValueError(
            f"{target}: the target must be a file that can be written, got: {error.strerror}. Choose another folder."
        ) from error


def _replaced(model: GgufFile, scaling: str, lists: _Lists) -> tuple[str, ...]:
    notes = [f"The file's own scaling ({scaling}) was replaced."] if scaling else []
    if lists.short_origin:
        notes.append(f"The short list is the file's own rotation inside its original window ({lists.short_origin}).")
    elif ALWAYS in model.tensors:
        notes.append(f"The file's own rotation at every length ({ALWAYS}) was removed; the lists replace it.")
    return tuple(notes)
