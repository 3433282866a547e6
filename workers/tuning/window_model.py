"""A model that is being trained: loaded in full precision, switched between its two windows, called for its loss alone.

Shapes: B packs, T tokens of each, N hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from rope.factors import RescaleFactors
from workers.model_files import ModelFiles
from workers.rope_patch import RopePatch
from workers.trimmed import set_forward
from workers.tuning.loss import LogitTerms, chunked_cross_entropy, logit_terms
from workers.tuning.packs import NOT_SCORED, Window

NUM_CHECKED_TOKENS = 16
"""Tokens on which the loss is compared with that of the model's own logits."""
TOLERANCE = 1e-3
"""Relative; the two differ by the order of a sum, but a cap or a scale that was missed moves the loss by far more."""


@dataclass(frozen=True, kw_only=True)
class TrainableModel:
    """A model whose weights may change."""

    model: PreTrainedModel
    """The model, on the CPU, with gradients."""
    saved_dtype: torch.dtype
    """Precision of the files that it came from, in which it is saved again."""


def load_trainable(path: str, *, gguf_file: str | None = None, dtype: torch.dtype = torch.float32) -> TrainableModel:
    """Return a model with weights that can be trained, on the CPU; what can be known without weights is checked before.

    Args:
        path: Folder, file that ends in .gguf, or hub id that is in the local cache.
        gguf_file: Name of a GGUF file inside the folder `path`.
        dtype: Precision of the weights while they are trained. Steps of fine-tuning are lost in bfloat16, so that other
            ones than float32 are for weights that are frozen.

    Raises:
        ValueError: There is no such model, or it cannot be read or trained.
    """
    files = ModelFiles(path, gguf_file)
    config = files.config()
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"the model must be a causal language model, got a {config.model_type} configuration. Choose another model."
        )
    model_class: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # type: ignore[assignment]
    saved_dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    model = files.weights(model_class, dtype=dtype, attention="sdpa")
    return TrainableModel(model=model, saved_dtype=saved_dtype)


class WindowSwitch:
    """Turns a model that is being trained to the rotation of one window or the other.

    A window stays until the other one is asked for: layers that are computed once more in the backward pass rotate as
    they did in the forward pass.

    Args:
        model: A causal LM, or what holds one (adapters, shards); its rotary modules stay where they are.
        factors: Rescale factors of the long window; those of the short one are the model's own rotation where they
            name none.

    Raises:
        ValueError: The factors are for another model, or it does not rotate by its rotary modules.
    """

    def __init__(self, model: PreTrainedModel, factors: RescaleFactors) -> None:
        self._patch = RopePatch(model)
        self._factors: dict[Window, RescaleFactors | None] = {"short": factors.short, "long": factors}
        self._patch.install(factors)  # factors of another model are refused here, not at the first long pack
        self._patch.restore()

    def turn_to(self, window: Window) -> None:
        """Make the model rotate as one window wants it.

        Args:
            window: short: the factors' own short ones, else as the model was loaded, bit for bit; long: rescaled, at
                the factors' attention temperature.
        """
        factors = self._factors[window]
        if factors is None:
            self._patch.restore()
        else:
            self._patch.install(factors)

    def restore(self) -> None:
        """Give the model back the rotation that it was loaded with."""
        self._patch.restore()


@contextmanager
def loss_alone(model: PreTrainedModel) -> Iterator[None]:
    """Make a causal LM return the summed loss of its packs, without logits in memory, in place of its own output.

    It is called with packed inputs, and with `divisor`, by which the sum is divided. All is done inside its forward,
    so that whoever wraps the model (data parallel processes, shards) sees it called as always.

    Args:
        model: A causal LM.

    Yields:
        None; the model is as it was afterwards.

    Raises:
        ValueError: The loss would not be that of the model's own logits.
    """
    terms = logit_terms(model.config)
    _check_head(model, terms)
    set_forward(model, partial(_loss, model, terms))
    try:
        yield
    finally:
        set_forward(model, None)


def _loss(
    model: PreTrainedModel,
    terms: LogitTerms,
    *,
    input_ids: Tensor,
    labels: Tensor,
    divisor: Tensor,
    shift_labels: Tensor | None = None,
    **others: object,
) -> Tensor:
    """Return the sum of the negative log-likelihood over `divisor`; accelerate shifts the labels of shared packs."""
    # Adapters call with every argument that a causal LM may have
    given = {name: value for name, value in others.items() if value is not None}
    given["use_cache"] = False
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    hidden_BTN: Tensor = decoder(input_ids=input_ids, **given).last_hidden_state
    if shift_labels is not None:
        labels = functional.pad(shift_labels, (1, 0), value=NOT_SCORED)
        hidden_BTN = functional.pad(hidden_BTN, (0, 0, 0, 1))
    output: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(output, FSDPModule):
        summed = chunked_cross_entropy(hidden_BTN, output, labels, softcap=terms.softcap, scale=terms.scale)
        return summed / divisor
    # Shards come and go at the head's calls: one call, of which the loss is the result
    bare = _Bare(output)
    set_forward(
        output, lambda given: chunked_cross_entropy(given, bare, labels, softcap=terms.softcap, scale=terms.scale)
    )
    try:
        whole: Tensor = output(hidden_BTN)
    finally:
        set_forward(output, None)
    return whole / divisor


class _Bare(nn.Module):
    """A module without its hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._own = module.forward

    def forward(self, given: Tensor) -> Tensor:
        found: Tensor = self._own(given)
        return found


@torch.no_grad()
def _check_head(model: PreTrainedModel, terms: LogitTerms) -> None:
    device = next(model.parameters()).device
    vocabulary_size = model.config.get_text_config().vocab_size
    ids_BT = torch.arange(NUM_CHECKED_TOKENS, device=device)[None] % vocabulary_size
    options: dict[str, Any] = _packed_options(NUM_CHECKED_TOKENS, device)
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    logits_BTV: Tensor = model(input_ids=ids_BT, use_cache=False, **options).logits
    expected = functional.cross_entropy(logits_BTV[0, :-1].float(), ids_BT[0, 1:], reduction="sum")
    found = _loss(model, terms, input_ids=ids_BT, labels=ids_BT, divisor=torch.ones((), device=device), **options)
    model.train(was_training)
    if not abs(found - expected) <= TOLERANCE * abs(expected):
        raise ValueError(
            f"the loss of {type(model).__name__} must be that of its own logits, {expected:.6g}, got {found:.6g}: its "
            "head does more than Ropewalk knows. Choose another model."
        )


def _packed_options(num_tokens: int, device: torch.device) -> dict[str, Tensor | int]:
    """Return what packed attention must be told of one document; other attention makes nothing of it."""
    ends_E = torch.tensor([0, num_tokens], dtype=torch.int32, device=device)
    return {"cu_seq_lens_q": ends_E, "cu_seq_lens_k": ends_E, "max_length_q": num_tokens, "max_length_k": num_tokens}
