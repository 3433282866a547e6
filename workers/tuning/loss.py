"""The loss of a pack without its logits: a chunk of them at a time, forward and backward.

Shapes: B packs, T tokens of each, N hidden size, V vocabulary, S tokens of all packs (B * T), C tokens of a chunk.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedConfig

from workers.tuning.packs import NOT_SCORED

CHUNK_TOKENS = 1024
"""Tokens whose logits exist at once: 0.5 GB in float32 for a vocabulary of 128,256, and a few times that in all."""

Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Hidden states (C, N) and targets (C,) in; their summed loss out."""


class LogitTerms(NamedTuple):
    """What a model does to the output of its head."""

    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap); None for no cap."""
    scale: float = 1.0
    """What logits are multiplied by, before the cap."""


def logit_terms(config: PreTrainedConfig) -> LogitTerms:
    """Return what a model does to its head's output, as its configuration says.

    Args:
        config: The model's; of a multimodal model its text part is read.

    Source: final_logit_softcapping of Gemma 2 and 3, logit_scale of Cohere, logits_scaling of Granite and MiniCPM3,
        lm_head_multiplier of Falcon-H1, in transformers.
    """
    text = config.get_text_config()
    scale = (getattr(text, "logit_scale", None) or 1.0) * (getattr(text, "lm_head_multiplier", None) or 1.0)
    scale /= getattr(text, "logits_scaling", None) or 1.0
    return LogitTerms(getattr(text, "final_logit_softcapping", None), scale)


def chunked_cross_entropy(
    hidden_BTN: Tensor,
    head: nn.Module,
    labels_BT: Tensor,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Return the summed negative log-likelihood of labels, of which at most a chunk's logits exist at any time.

    Where gradients are wanted, each chunk's are taken at once, so that no logits are computed twice; the gradients of
    the head's weights are summed in float32 or better. On CUDA, liger-kernel's version does the same where it is
    installed and the head is a plain linear layer without a scale. No second derivatives.

    Args:
        hidden_BTN: Output of the final norm.
        head: What makes logits of it, row by row: a linear layer, tied or not, with adapters or not.
        labels_BT: Token ids, -100 where not scored; not shifted: position t predicts label t + 1.
        chunk_tokens: C; >= 1.
        softcap, scale: As `LogitTerms`.

    Returns:
        Sum in nats, a scalar, float32 (float64 where the logits are).

    Raises:
        ValueError: chunk_tokens is below 1.

    Source: the gradient in the forward pass: Liger Kernel, arXiv:2410.10989, section 3.2.
    """
    if chunk_tokens < 1:
        raise ValueError(f"a chunk of the loss must have at least 1 token, got {chunk_tokens}. Correct it.")
    targets_S = functional.pad(labels_BT[:, 1:], (0, 1), value=NOT_SCORED).flatten()
    hidden_SN = hidden_BTN.flatten(0, 1)
    if type(head) is nn.Linear and hidden_SN.is_cuda and scale == 1.0 and importlib.util.find_spec("liger_kernel"):
        return _liger(hidden_SN, head, targets_S, softcap)
    score = partial(_chunk_loss, head, softcap, scale)
    weights = [weight for weight in head.parameters() if weight.requires_grad]
    if torch.is_grad_enabled() and (hidden_SN.requires_grad or weights):
        return _ChunkedLoss.apply(hidden_SN, targets_S, score, chunk_tokens, *weights)  # type: ignore[no-any-return,no-untyped-call]
    chunks = [slice(start, start + chunk_tokens) for start in range(0, len(hidden_SN), chunk_tokens)]
    return torch.stack([score(hidden_SN[chunk], targets_S[chunk]) for chunk in chunks]).sum()


def _chunk_loss(head: nn.Module, softcap: float | None, scale: float, hidden_CN: Tensor, targets_C: Tensor) -> Tensor:
    logits_CV: Tensor = head(hidden_CN)
    if scale != 1.0:
        logits_CV = logits_CV * scale
    if softcap is not None:
        logits_CV = softcap * torch.tanh(logits_CV / softcap)
    if logits_CV.dtype != torch.float64:
        logits_CV = logits_CV.float()
    return functional.cross_entropy(logits_CV, targets_C, reduction="sum", ignore_index=NOT_SCORED)


class _ChunkedLoss(torch.autograd.Function):
    """The sum of the chunks' losses, whose gradients are there when it is."""

    @staticmethod
    def forward(
        ctx: Any, hidden_SN: Tensor, targets_S: Tensor, score: Score, chunk_tokens: int, *weights: Tensor
    ) -> Tensor:
        """Return the sum; keep a gradient for the hidden states and one for each weight."""
        wants_hidden: bool = ctx.needs_input_grad[0]
        by_hidden_SN = torch.empty_like(hidden_SN) if wants_hidden else None
        by_weights: list[Tensor | None] = [None] * len(weights)
        losses = []
        for start in range(0, len(hidden_SN), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            hidden_CN = hidden_SN[chunk].detach().requires_grad_(wants_hidden)
            with torch.enable_grad():
                loss = score(hidden_CN, targets_S[chunk])
            inputs = [hidden_CN, *weights] if wants_hidden else [*weights]
            found = list(torch.autograd.grad(loss, inputs, allow_unused=True))
            if by_hidden_SN is not None:
                by_hidden_SN[chunk] = found.pop(0)
            by_weights = [_sum(total, part) for total, part in zip(by_weights, found, strict=True)]
            losses.append(loss.detach())
        of_weights = [
            None if total is None else total.to(weight.dtype) for total, weight in zip(by_weights, weights, strict=True)
        ]
        ctx.save_for_backward(by_hidden_SN, *of_weights)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Return the kept gradients, times the one of the sum."""
        by_hidden_SN, *by_weights = (
            None if part is None else part * by_loss.to(part.dtype) for part in ctx.saved_tensors
        )
        return by_hidden_SN, None, None, None, *by_weights


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """Return a gradient summed so far, in no less than float32: a hundred chunks would round it away in bfloat16."""
    if part is None:
        return total
    if total is None:
        return part if part.dtype == torch.float64 else part.float()
    return total.add_(part)


def _liger(hidden_SN: Tensor, head: nn.Linear, targets_S: Tensor, softcap: float | None) -> Tensor:
    """Return the same by liger-kernel, which writes gradients over logits and chooses the chunks itself."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(
        ignore_index=NOT_SCORED, reduction="sum", softcap=softcap, accum_dtype=torch.float32
    )
    found: Tensor = loss(head.weight, hidden_SN, targets_S, head.bias)
    return found
