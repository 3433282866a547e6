"""Factors in a GGUF file: written into a copy of a model for llama.cpp and what is built on it, and read back."""

import errno
import shlex
import shutil
from pathlib import Path

import gguf
import numpy as np

from results.atomic_file import replacing
from results.export.engine import Mode
from results.export.gguf_architectures import check_architecture
from results.export.gguf_container import GgufFile, copy_size, open_gguf, write_copy
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
CONTEXT_STEP = 256
"""llama.cpp rounds the length of a context up to a multiple of this."""
DEFAULT_BASE = 10000.0
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)

Lists = tuple[tuple[float, ...], tuple[float, ...]]


def write_gguf(
    source: Path, target: Path, factors: RescaleFactors, mode: Mode, *, force: bool, in_place: bool
) -> tuple[str, ...]:
    """Write a copy of a GGUF model that rotates with the factors; every weight is copied as it is.

    The copy needs the disk space of the model, and little memory. It appears whole or not at all. Every key of the
    file's own RoPE scaling is replaced; no other key changes but the context length.

    In mode dual the short list is `factors.short_values`, or else the rotation that the file had inside its original
    window: its own short list, Llama 3.1's rope_freqs, or ones.

    Args:
        source: GGUF file of a model.
        target: File to write.
        factors: What to write, rounded to 32-bit floats.
        mode: dual: long and short list; pinned: the long list as both.
        force: Whether an existing target, and a scaling that the file has already, may be replaced.
        in_place: Whether source and target may be the same file; it is still replaced whole.

    Returns:
        What to type, then what llama.cpp does otherwise than Ropewalk, a sentence each.

    Raises:
        ValueError: The source is no whole little-endian GGUF file, of an architecture that does not rotate with two
            lists, already scaled, or for other factors; the factors keep start tokens or do not fit 32-bit floats;
            the target exists, is the source, cannot be written, or does not fit the disk.
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
    long, short = _lists(model, factors, mode)
    target = target.resolve()
    _check_space(model, target)
    _write(model, target, factors, long=long, short=short)
    return (*_steps(target, factors, mode), *_replaced(model, factors, mode, scaling), *_notes(factors, mode))


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


def _lists(model: GgufFile, factors: RescaleFactors, mode: Mode) -> Lists:
    """Return the long and the short list in 32-bit floats."""
    long = _as_float32(factors.values)
    if mode == "pinned":
        return long, long
    if factors.short_values is not None:
        return long, _as_float32(factors.short_values)
    return long, _own_short_list(model) or (1.0,) * len(long)


def _own_short_list(model: GgufFile) -> tuple[float, ...] | None:
    """Return the factors that a file has inside its original window; a pinned file does not tell them any more."""
    short = model.float_list(SHORT)
    return short if short and short != model.float_list(LONG) else model.float_list(ALWAYS)


def _as_float32(values: tuple[float, ...]) -> tuple[float, ...]:
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.asarray(values).astype(np.float32)
    wrong = np.flatnonzero(~((rounded > 0) & np.isfinite(rounded)))
    if wrong.size:
        raise ValueError(
            f"factors in a GGUF must fit 32-bit floats, got {values[wrong[0]]:g} (pair {wrong[0]}). Check its origin."
        )
    return tuple(rounded.tolist())


def _write(
    model: GgufFile, target: Path, factors: RescaleFactors, *, long: tuple[float, ...], short: tuple[float, ...]
) -> None:
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
                tensors={LONG: long, SHORT: short},
            )
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise ValueError(
            f"{target}: the target must be a file that can be written, got: {error.strerror}. Choose another folder."
        ) from error


def _steps(target: Path, factors: RescaleFactors, mode: Mode) -> list[str]:
    model = shlex.quote(str(target))
    border = factors.original_length // CONTEXT_STEP * CONTEXT_STEP
    steps = [f"llama-server -m {model} -c {factors.target_length}   # up to {factors.target_length} tokens"]
    if mode == "dual" and border:
        remedy = factors.short_attention_temperature / factors.attention_temperature
        temperature = "" if remedy == 1 else f" --yarn-attn-factor {remedy:.9g}"
        steps.append(f"llama-server -m {model} -c {border}{temperature}   # short factors")
    return steps


def _replaced(model: GgufFile, factors: RescaleFactors, mode: Mode, scaling: str) -> list[str]:
    notes = [f"The file's own scaling ({scaling}) was replaced."] if scaling else []
    if mode == "dual" and factors.short_values is None and _own_short_list(model):
        own = ALWAYS if SHORT not in model.tensors else SHORT
        notes.append(f"The short list is the file's own rotation inside its original window ({own}).")
    elif ALWAYS in model.tensors:
        notes.append(f"The file's own rotation at every length ({ALWAYS}) was removed; the lists replace it.")
    return notes


def _notes(factors: RescaleFactors, mode: Mode) -> list[str]:
    original, temperature = factors.original_length, factors.attention_temperature
    notes = []
    if mode == "pinned":
        notes.append("Both lists are the long one: short prompts rotate with it too.")
    else:
        notes += [
            f"llama.cpp chooses once per context, not per prompt: the long list where -c is above {original}, however "
            "short the prompt, else the short one. With --no-kv-unified, -c divided by -np is what counts.",
            "Always give -c: without it llama-server fits the context to free memory, and with that the list; "
            "llama-cpp-python's n_ctx is 512, the short list, unless given (0: the target length).",
        ]
        if original % CONTEXT_STEP:
            below = original // CONTEXT_STEP * CONTEXT_STEP
            notes.append(
                f"The original length {original} is no multiple of {CONTEXT_STEP}, to which llama.cpp rounds -c up: "
                f"-c {original} takes the long list, {f'-c {below} or less' if below else 'and no -c'} the short one."
            )
        if temperature != factors.short_attention_temperature:
            notes.append(
                f"llama.cpp has one attention temperature for both lists, {temperature:g}: with the short list, "
                f"--yarn-attn-factor {factors.short_attention_temperature / temperature:.9g} (yarn_attn_factor in "
                "llama-cpp-python) gives the model inside its original window back."
            )
    if temperature != 1:
        notes.append("Leave --context-shift off: each shift multiplies cached keys by the attention temperature again.")
    return notes
