"""Fused kernels in place of a model's norms, gated activations and rotations: where they agree and are faster."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from workers.fused_parts import Computation, Forward, Part, PartName, parts_of
from workers.speed import synchronize
from workers.trimmed import HALF_TOLERANCE, TOLERANCES

NUM_PROBE_TOKENS = 64
"""Tokens on which a kernel is compared with what it replaces, and the model with itself."""
NUM_TIMED_TOKENS = 4096
"""Tokens with which both are timed."""
NUM_ROUNDINGS = 8
"""How many roundings of the precision a kernel may differ by: both round their few steps, at different places."""
LEAST_GAIN = 1.1
"""How much faster a kernel must be: another run must come to the same choice, whatever else its machine does."""


class Kernel(NamedTuple):
    """A computation that may take the place of a part of a model."""

    part: PartName
    """Which; what it takes is said there."""
    name: str
    """Whose it is, for the log."""
    compute: Computation
    """Computes it; no gradient is needed."""


def fuse(model: PreTrainedModel) -> str:
    """Let fused kernels compute the model's small operations where that is faster; else leave it as it is.

    Each part is decided by itself: a kernel must agree with the model's own code, and be faster on this device at the
    model's sizes; with all of them on, the logits must agree too. The rotary modules, which hold the frequencies, are
    not touched, nor are other models of the same class. Gradients go through the model's own code: the kernel that
    rotates has none by cos and sin. A model on a CPU stays as it is: gains are small there, and its runs repeat bit
    for bit.

    Args:
        model: A causal LM in evaluation mode.

    Returns:
        What was decided, in words for the log.
    """
    devices = {parameter.device for parameter in model.parameters()}
    if any(device.type != "cuda" for device in devices):
        return "off: the model is not on CUDA"
    if devices != {torch.device("cuda", torch.cuda.current_device())}:
        return "off: the model is not on the current device alone, on which liger-kernel computes"
    try:
        return fuse_with(model, [*liger_kernels(), *torch_kernels()])
    except Exception as error:  # noqa: BLE001 - packages raise what they like when they are imported
        return f"{fuse_with(model, torch_kernels())}; liger-kernel: {_in_words(error)}"


def fuse_with(model: PreTrainedModel, kernels: Sequence[Kernel]) -> str:
    """Let these kernels compute parts of the model where they agree and are faster, on any device.

    Args:
        model: As `fuse`.
        kernels: What is tried.

    Returns:
        As `fuse`.
    """
    try:
        with torch.inference_mode():
            plain_BTV = _logits(model)
            parts = [part for part in parts_of(model) if any(kernel.part == part.name for kernel in kernels)]
            choices = [_choose(part, kernels) for part in parts]
            if not any(choice.kernel for choice in choices):
                return f"off: {_listed(choices) or 'the model has no part that they compute'}"
            for choice in choices:
                _install(choice)
            error = _relative_error(_logits(model), plain_BTV)
    except Exception as failure:  # noqa: BLE001 - kernels of other packages fail as they like; the model needs none
        unfuse(model)
        return f"off: {_in_words(failure)}"
    if not error <= TOLERANCES.get(model.dtype, HALF_TOLERANCE):
        unfuse(model)
        return f"off: logits differ by {error:.2g} of their norm with {_listed(choices)}"
    return _listed(choices)


def unfuse(model: PreTrainedModel) -> None:
    """Let the model's own code compute everything again, bit for bit; harmless where nothing is fused.

    Args:
        model: Any model.
    """
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), _FusedForward):
            del module.forward


def torch_kernels() -> list[Kernel]:
    """Return those that come with torch."""
    return [Kernel("RMSNorm", "torch", _torch_norm)]


def liger_kernels() -> list[Kernel]:
    """Return those of liger-kernel, which are written in Triton.

    Raises:
        ImportError: It, or Triton, is not installed. Whatever it raises where it does not suit this machine.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        raise ImportError("not installed")
    from liger_kernel.transformers.functional import liger_rms_norm, liger_rope, liger_swiglu

    # offset and casting mode: Llama's norms; Gemma's, which multiply by 1 + weight; OLMo's
    modes = ((0.0, "llama"), (1.0, "gemma"), (0.0, "gemma"))
    return [
        *(Kernel("RMSNorm", "liger-kernel", partial(_liger_norm, liger_rms_norm, *mode)) for mode in modes),
        Kernel("SwiGLU", "liger-kernel", liger_swiglu),
        Kernel("RoPE", "liger-kernel", liger_rope),
    ]


def _torch_norm(hidden: Tensor, weight_W: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(hidden, weight_W.shape, weight_W, eps)


def _liger_norm(
    norm: Callable[..., Tensor], offset: float, casting: str, hidden: Tensor, weight_W: Tensor, eps: float
) -> Tensor:
    return norm(hidden, weight_W, eps, offset=offset, casting_mode=casting, in_place=False)


class _Choice(NamedTuple):
    part: Part
    kernel: Kernel | None
    words: str


class _FusedForward:
    """A module's forward with a kernel in it. An object, so that a copy of the model gets one for its own modules."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        self._module = module
        self._forward = forward

    def __call__(self, *args: object, **kwargs: object) -> object:
        forward = type(self._module).forward if torch.is_grad_enabled() else self._forward
        return forward(self._module, *args, **kwargs)


def _install(choice: _Choice) -> None:
    if choice.kernel is not None:
        forward = choice.part.forward(choice.kernel.compute)
        for module in choice.part.modules:
            module.forward = _FusedForward(module, forward)


def _choose(part: Part, kernels: Sequence[Kernel]) -> _Choice:
    """Choose the fastest kernel that agrees, if one is faster than the model's own code."""
    gains: list[tuple[float, Kernel]] = []
    refusals: dict[str, str] = {}
    for kernel in (kernel for kernel in kernels if kernel.part == part.name):
        try:
            _check_agreement(part, kernel)
            gain = _gain(part, kernel)
        except Exception as error:  # noqa: BLE001 - as in fuse_with
            refusals.setdefault(kernel.name, _in_words(error))
            continue
        if gain >= LEAST_GAIN:
            gains.append((gain, kernel))
        else:
            refusals[kernel.name] = f"{gain:.2g} times as fast"
    if not gains:
        reasons = ", ".join(f"{name}: {reason}" for name, reason in refusals.items())
        return _Choice(part, None, f"{part.name} as it is ({reasons})")
    gain, kernel = max(gains, key=lambda pair: pair[0])
    return _Choice(part, kernel, f"{part.name} by {kernel.name} ({gain:.1f} times as fast)")


def _check_agreement(part: Part, kernel: Kernel) -> None:
    """Raise ValueError where a kernel computes something else than the model's own code."""
    for num_tokens in (NUM_PROBE_TOKENS, NUM_TIMED_TOKENS):  # a package may have another kernel for many
        expected = _as_tuple(part.plain(*part.inputs(num_tokens)))
        computed = _as_tuple(part.fused(kernel.compute, *part.inputs(num_tokens)))  # it may overwrite them
        for ours, theirs in zip(computed, expected, strict=True):
            if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                raise ValueError(f"gives {tuple(ours.shape)} {ours.dtype}, not {tuple(theirs.shape)} {theirs.dtype}")
            # Token by token, so that small ones count: there a norm's eps shows
            error = _relative_error(ours, theirs, dim=-1)
            if not error <= NUM_ROUNDINGS * torch.finfo(theirs.dtype).eps:
                raise ValueError(f"differs by {error:.2g}")


def _gain(part: Part, kernel: Kernel) -> float:
    """Return how many times as fast as the model's own code a kernel is; best of three."""
    inputs = part.inputs(NUM_TIMED_TOKENS)
    seconds: list[tuple[float, float]] = []
    for _ in range(4):  # in turn, so that what else the machine does meets both
        plain = _seconds(partial(part.plain, *inputs), inputs[0].device)
        seconds.append((plain, _seconds(partial(part.fused, kernel.compute, *inputs), inputs[0].device)))
    plains, fuseds = zip(*seconds[1:], strict=True)  # the first is the warm-up
    return float(min(plains) / min(fuseds))


def _seconds(compute: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = perf_counter()
    for _ in range(5):
        compute()
    synchronize(device)
    return perf_counter() - start


def _logits(model: PreTrainedModel) -> Tensor:
    """Return the logits of a few random tokens."""
    embedding = next(model.get_input_embeddings().parameters())
    vocabulary_size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    input_ids_BT = torch.randint(vocabulary_size, (1, NUM_PROBE_TOKENS), generator=generator)
    logits_BTV: Tensor = model(input_ids=input_ids_BT.to(embedding.device), use_cache=False).logits
    return logits_BTV


def _relative_error(ours: Tensor, theirs: Tensor, dim: int | None = None) -> float:
    """Return the norm of the difference as a share of the norm, the largest along `dim`; NaN where one is."""
    difference = torch.linalg.vector_norm(ours.float() - theirs.float(), dim=dim)
    return float((difference / torch.linalg.vector_norm(theirs.float(), dim=dim)).max())


def _as_tuple(value: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _listed(choices: Sequence[_Choice]) -> str:
    return ", ".join(dict.fromkeys(choice.words for choice in choices))


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
