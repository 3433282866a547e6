"""The derivative of a loss by rescale factors and attention temperature, through whatever model they are installed in.

Shapes: B documents, T tokens, D rotated dimensions per head, P frequency pairs (D / 2).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from workers.rope_patch import RopePatch, RotarySite, position_ids
from workers.trimmed import set_forward

NUM_COMPARED_TOKENS = 1024
"""Tokens on which it is found out how a module lays out its pairs; float32 angles are good to 1e-4 there."""
TOLERANCE = 1e-3
"""How far a module's cos and sin may lie from ours there, beside the rounding of its precision."""


MOST_KEPT_BYTES = 2**26
"""Bytes of the hidden states that enter the layers, up to which all activations are kept: some 30 times as many."""


class RotationChange(NamedTuple):
    """A change of the rotation that is zero: a loss has a derivative by it."""

    log_factors: Tensor
    """What is added to the logarithm of each rescale factor, shape (P,), float32."""
    attention_temperature: Tensor
    """What is added to the attention temperature, a scalar, float32."""

    def gradient(self, loss: Tensor) -> list[float]:
        """Return the loss's derivatives by the logarithms of the factors, then by the attention temperature.

        Args:
            loss: A scalar that was computed inside `differentiable_rotation`.

        Returns:
            P + 1 numbers; they need not be finite.
        """
        by_log_factors_P, by_temperature = torch.autograd.grad(loss, [*self])
        return [*by_log_factors_P.tolist(), by_temperature.item()]


@contextmanager
def differentiable_rotation(patch: RopePatch, *, num_start_tokens: int) -> Iterator[RotationChange]:
    """Make the rotation that is installed depend on a change of zero; cos and sin keep their bits.

    The model's own modules rotate; their cos and sin gain first-order terms. With a = position * inv_freq / lambda,
    d cos(a) / d log(lambda) = a sin(a) and d sin(a) / d log(lambda) = -a cos(a); both are proportional to the
    attention temperature.

    Args:
        patch: The patch of a model, with factors installed.
        num_start_tokens: Positions of those factors that keep their angle, whatever the factors are.

    Yields:
        The change; gradients must be enabled where it is used.

    Raises:
        ValueError: A rotary module gives neither the halves nor the neighbours of each head the same angles; raised by
            the model's forward.
    """
    num_pairs = patch.geometry.rotary_dim // 2
    change = RotationChange(torch.zeros(num_pairs, requires_grad=True), torch.zeros((), requires_grad=True))
    with ExitStack() as undo:
        for site in patch.sites:
            hook = partial(_add_change, site, num_start_tokens, change)
            undo.callback(site.module.register_forward_hook(hook, with_kwargs=True).remove)
        yield change


@contextmanager
def checkpointed_layers(model: PreTrainedModel, num_tokens: int) -> Iterator[None]:
    """Keep the input of each layer alone for the backward pass, which computes the layer once more.

    Does nothing for documents that are short for their model: a gradient takes a third less time then.
    transformers' own switch works in training mode only, where dropout is on.

    Args:
        model: Layers that transformers would not checkpoint keep everything.
        num_tokens: Length of the document.

    Yields:
        None; the layers are as they were afterwards.
    """
    config = model.config.get_text_config()
    num_bytes = num_tokens * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize
    with ExitStack() as undo:
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer) and num_bytes > MOST_KEPT_BYTES:
                undo.callback(set_forward, layer, layer.__dict__.get("forward"))
                # Nothing is random in evaluation mode
                again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
                set_forward(layer, again)
        yield


def _add_change(
    site: RotarySite,
    num_start_tokens: int,
    change: RotationChange,
    module: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Tensor],
    output: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    if not site.serves(args, kwargs):
        return output
    if not isinstance(output, tuple) or len(output) != 2:
        raise _unknown_layout(module)
    cos_BTD, sin_BTD = output
    device, temperature = cos_BTD.device, site.rotation().attention_scaling
    precision = torch.promote_types(cos_BTD.dtype, torch.float32)
    positions_BT1 = position_ids(args, kwargs).to(device)[..., None]
    is_turned_BT1 = positions_BT1 >= num_start_tokens
    angles_BTP = positions_BT1.float() * site.rotation().inv_freq.to(device, torch.float32)
    laid_out = _layout(module, output, angles_BTP, is_turned_BT1, temperature)
    angles_BTD = laid_out(angles_BTP * is_turned_BT1).to(precision)
    by_factors_D = laid_out(change.log_factors.to(device))
    by_temperature = change.attention_temperature.to(device) / temperature
    cos, sin = cos_BTD.to(precision), sin_BTD.to(precision)
    changed_cos = cos + angles_BTD * sin * by_factors_D + cos * by_temperature
    changed_sin = sin - angles_BTD * cos * by_factors_D + sin * by_temperature
    return changed_cos.to(cos_BTD.dtype), changed_sin.to(sin_BTD.dtype)


def _layout(
    module: nn.Module,
    output: tuple[Tensor, Tensor],
    angles_BTP: Tensor,
    is_turned_BT1: Tensor,
    temperature: float,
) -> Callable[[Tensor], Tensor]:
    """Return what brings pairs, shape (..., P), into the module's order, shape (..., D)."""
    head = slice(NUM_COMPARED_TOKENS)
    is_turned_BT1, angles_BTP = is_turned_BT1[..., head, :], angles_BTP[..., head, :]
    tolerance = temperature * (TOLERANCE + torch.finfo(output[0].dtype).eps)
    for laid_out in (_in_halves, _interleaved):
        expected = [laid_out(function(angles_BTP)) * temperature for function in (torch.cos, torch.sin)]
        found = [values[..., head, :] for values in output]
        if all(
            mine.shape == theirs.shape and ((mine - theirs) * is_turned_BT1).abs().max() <= tolerance
            for mine, theirs in zip(expected, found, strict=True)
        ):
            return laid_out
    raise _unknown_layout(module)


def _in_halves(pairs: Tensor) -> Tensor:
    return torch.cat((pairs, pairs), dim=-1)


def _interleaved(pairs: Tensor) -> Tensor:
    return pairs.repeat_interleave(2, dim=-1)


def _unknown_layout(module: nn.Module) -> ValueError:
    return ValueError(
        "a rotary module must return cos and sin with the angles of all pairs twice, one after the other or side by "
        f"side, got something else from {type(module).__name__}. Choose a search that needs no gradient."
    )
