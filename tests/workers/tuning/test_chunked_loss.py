"""The loss without logits: the same number and the same gradients as with them, and never more than a chunk of them.

Shapes: B packs, T tokens, N hidden size, V vocabulary, C tokens of a chunk.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MiniCPM3Config,
    PreTrainedConfig,
    PreTrainedModel,
)

from tests.workers.architectures import LATENT, TRIMMABLE
from tests.workers.conftest import SIZES, WIDE
from tests.workers.trimming import from_config
from workers.tuning.loss import chunked_cross_entropy, logit_terms

NUM_PACKS, NUM_TOKENS, HIDDEN, VOCABULARY, CHUNK = 2, 50, 24, 333, 16


class RecordedShapes(TorchDispatchMode):
    """Records how many rows of logits the largest tensor of them has."""

    def __init__(self, row: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._row = row
        self.most_rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, tuple | list) else [found]:
            if isinstance(part, Tensor) and part.ndim > 1 and part.shape[-1] == self._row:
                self.most_rows = max(self.most_rows, part.numel() // self._row)
        return found


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_BTN = torch.randn(NUM_PACKS, NUM_TOKENS, HIDDEN, generator=generator, dtype=dtype)
    labels_BT = torch.randint(VOCABULARY, (NUM_PACKS, NUM_TOKENS), generator=generator)
    labels_BT[:, [0, 7, 8, 9, 33]] = -100
    return hidden_BTN, labels_BT


def plain_loss(
    hidden_BTN: Tensor, head: nn.Module, labels_BT: Tensor, softcap: float | None = None, scale: float = 1.0
) -> Tensor:
    """The definition, with all logits."""
    logits_BTV = head(hidden_BTN) * scale
    if softcap is not None:
        logits_BTV = softcap * torch.tanh(logits_BTV / softcap)
    predicted = logits_BTV[:, :-1].reshape(-1, VOCABULARY)
    return functional.cross_entropy(predicted, labels_BT[:, 1:].reshape(-1), reduction="sum")


def with_gradients(loss: Callable[..., Tensor], head: nn.Module, **options: Any) -> list[Tensor]:
    """The loss, times three so that the gradient that comes in counts, and its gradients."""
    hidden_BTN, labels_BT = batch()
    hidden_BTN.requires_grad_()
    found = 3 * loss(hidden_BTN, head, labels_BT, **options)
    weights = [weight for weight in head.parameters() if weight.requires_grad]
    return [found.detach(), *torch.autograd.grad(found, [hidden_BTN, *weights])]


def model_loss(model: PreTrainedModel, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    hidden_BTN = model.get_decoder()(input_ids=ids_BT, use_cache=False).last_hidden_state  # type: ignore[no-untyped-call]
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    terms = logit_terms(model.config)._asdict()
    return chunked_cross_entropy(hidden_BTN, head, labels_BT, chunk_tokens=CHUNK, **terms)


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        # sums of some hundred float64 terms in another order
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chunk_tokens", [1, 7, CHUNK, 99, 100, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_a_chunked_loss_and_its_gradients_are_those_of_all_logits(chunk_tokens: int, bias: bool) -> None:
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=torch.float64)
    found = with_gradients(chunked_cross_entropy, head, chunk_tokens=chunk_tokens)
    assert_equal(found, with_gradients(plain_loss, head))


@pytest.mark.parametrize(("softcap", "scale"), [(30.0, 1.0), (0.5, 1.0), (None, 0.0625), (2.0, 3.0)])
def test_caps_and_scales_of_logits_are_in_the_loss_and_its_gradients(softcap: float | None, scale: float) -> None:
    head = nn.Linear(HIDDEN, VOCABULARY, dtype=torch.float64)
    terms = {"softcap": softcap, "scale": scale}
    found = with_gradients(chunked_cross_entropy, head, chunk_tokens=CHUNK, **terms)
    assert_equal(found, with_gradients(plain_loss, head, **terms))


def test_a_loss_of_equal_logits_is_the_logarithm_of_the_vocabulary() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    nn.init.zeros_(head.weight)
    hidden_BTN, labels_BT = batch(torch.float32)
    loss = chunked_cross_entropy(hidden_BTN, head, labels_BT, chunk_tokens=CHUNK)
    # 50 labels of each pack, without the first, which nothing predicts, and four that are not scored
    assert loss.item() == pytest.approx(2 * 45 * math.log(VOCABULARY))


def test_no_tensor_ever_holds_the_logits_of_more_than_a_chunk() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY)
    hidden_BTN, labels_BT = batch(torch.float32)
    hidden_BTN.requires_grad_()
    with RecordedShapes(VOCABULARY) as recorded:
        chunked_cross_entropy(hidden_BTN, head, labels_BT, chunk_tokens=CHUNK).backward()  # type: ignore[no-untyped-call]
    assert recorded.most_rows == max(CHUNK, HIDDEN)  # HIDDEN rows are the transposed weights
    with RecordedShapes(VOCABULARY) as recorded:
        plain_loss(hidden_BTN, head, labels_BT).backward()  # type: ignore[no-untyped-call]
    assert recorded.most_rows == NUM_PACKS * NUM_TOKENS


def test_no_logits_outlive_the_loss() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY)
    hidden_BTN, labels_BT = batch(torch.float32)
    kept: list[tuple[int, ...]] = []

    def keep(part: Tensor) -> Tensor:
        kept.append(tuple(part.shape))
        return part

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda part: part):
        chunked_cross_entropy(hidden_BTN.requires_grad_(), head, labels_BT, chunk_tokens=CHUNK)
    # those inside are the chunks'; what is left at the end are the gradients of hidden states, weights and bias
    assert kept[-3:] == [(NUM_PACKS * NUM_TOKENS, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,)]


def test_without_gradients_the_loss_is_the_same_number() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY, dtype=torch.float64)
    hidden_BTN, labels_BT = batch()
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden_BTN, head, labels_BT, chunk_tokens=CHUNK)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain_loss(hidden_BTN, head, labels_BT).detach())


def test_a_frozen_head_gets_no_gradient_and_passes_one_on() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY, dtype=torch.float64).requires_grad_(False)
    found = with_gradients(chunked_cross_entropy, head, chunk_tokens=CHUNK)
    assert len(found) == 2
    assert_equal(found, with_gradients(plain_loss, head))


def test_a_head_alone_can_be_trained() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY, dtype=torch.float64)
    hidden_BTN, labels_BT = batch()
    found, expected = (
        torch.autograd.grad(loss, head.weight)[0]
        for loss in (
            chunked_cross_entropy(hidden_BTN, head, labels_BT, chunk_tokens=CHUNK),
            plain_loss(hidden_BTN, head, labels_BT),
        )
    )
    torch.testing.assert_close(found, expected)


def test_gradients_of_a_bfloat16_head_are_summed_more_precisely() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=torch.bfloat16)
    exact = copy.deepcopy(head).double()
    hidden_BTN, labels_BT = batch(torch.bfloat16)
    by_weight = torch.autograd.grad(chunked_cross_entropy(hidden_BTN, head, labels_BT, chunk_tokens=1), head.weight)[0]
    expected = torch.autograd.grad(plain_loss(hidden_BTN.double(), exact, labels_BT), exact.weight)[0]
    # a hundred parts of a sum, rounded to 8 bits each but summed in float32; summed in bfloat16 it is beyond 1e-2
    assert ((by_weight.double() - expected).norm() / expected.norm()).item() < 5e-3


def test_a_head_tied_to_the_embedding_gets_both_gradients() -> None:
    embedding, head = nn.Embedding(VOCABULARY, HIDDEN, dtype=torch.float64), nn.Linear(HIDDEN, VOCABULARY, bias=False)
    head.weight = embedding.weight
    _, labels_BT = batch()
    ids_BT = labels_BT.clamp(min=0)
    found, expected = (
        torch.autograd.grad(loss(embedding(ids_BT).sin(), head, labels_BT), embedding.weight)[0]
        for loss in (chunked_cross_entropy, plain_loss)
    )
    torch.testing.assert_close(found, expected)


class AdaptedHead(nn.Module):
    """A frozen head and a low-rank change of it, as adapters are."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(HIDDEN, VOCABULARY, dtype=torch.float64).requires_grad_(False)
        self.down = nn.Linear(HIDDEN, 4, bias=False, dtype=torch.float64)
        self.up = nn.Linear(4, VOCABULARY, bias=False, dtype=torch.float64)

    def forward(self, hidden_CN: Tensor) -> Tensor:
        logits_CV: Tensor = self.base(hidden_CN) + self.up(self.down(hidden_CN))
        return logits_CV


def test_a_low_rank_change_of_a_frozen_head_gets_its_gradients() -> None:
    head = AdaptedHead()
    found = with_gradients(chunked_cross_entropy, head, chunk_tokens=CHUNK)
    assert len(found) == 4
    assert_equal(found, with_gradients(plain_loss, head))


def test_a_head_with_adapters_trains_them_alone() -> None:
    peft = pytest.importorskip("peft")
    config = LlamaConfig(**SIZES)
    torch.manual_seed(0)
    model = from_config(config).double()
    adapters = peft.LoraConfig(r=4, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, adapters)
    ids_BT = torch.randint(256, (2, 40))
    loss = model_loss(model, ids_BT, ids_BT)
    logits_BTV = wrapped(input_ids=ids_BT).logits
    expected = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum")
    trained = {name: weight for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in trained)
    assert any("lm_head" in name for name in trained)
    assert_equal(
        [loss, *torch.autograd.grad(loss, [*trained.values()])],
        [expected, *torch.autograd.grad(expected, [*trained.values()])],
    )


def test_a_chunk_without_tokens_is_refused() -> None:
    hidden_BTN, labels_BT = batch(torch.float32)
    with pytest.raises(ValueError, match="a chunk of the loss must have at least 1 token, got 0"):
        chunked_cross_entropy(hidden_BTN, nn.Linear(HIDDEN, VOCABULARY), labels_BT, chunk_tokens=0)


FALCON_H1: dict[str, Any] = {"lm_head_multiplier": 0.5, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}
TERMS: dict[str, tuple[Callable[[], PreTrainedConfig], float | None, float]] = {
    "llama": (lambda: LlamaConfig(**SIZES), None, 1.0),
    "gemma2": (lambda: Gemma2Config(**SIZES | WIDE), 30.0, 1.0),
    "cohere": (lambda: CohereConfig(**SIZES), None, 0.0625),
    "granite": (lambda: GraniteConfig(**SIZES | {"logits_scaling": 8.0}), None, 0.125),
    "minicpm3": (lambda: MiniCPM3Config(**SIZES | LATENT | {"dim_model_base": 16}), None, 0.5),
    "falcon_h1": (lambda: FalconH1Config(**SIZES | FALCON_H1), None, 0.5),
}
MODELS = TRIMMABLE | {name: make for name, (make, *_) in TERMS.items()}


@pytest.mark.parametrize("name", TERMS)
def test_what_a_model_does_to_its_logits_is_known(name: str) -> None:
    make, softcap, scale = TERMS[name]
    assert logit_terms(make()) == (softcap, scale)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_s_chunked_loss_and_gradients_are_those_of_its_own_logits(name: str) -> None:
    torch.manual_seed(0)
    model = from_config(MODELS[name]())
    ids_BT = torch.randint(256, (2, 40))
    labels_BT = torch.where(torch.rand(2, 40) < 0.2, -100, ids_BT)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found = model_loss(model, ids_BT, labels_BT)
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    expected = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    for one, other in zip(
        *(torch.autograd.grad(loss, trained, allow_unused=True) for loss in (found, expected)), strict=True
    ):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            # float32 through two layers, by the gradient's norm: single entries cancel
            assert (one - other).norm() <= 1e-4 * other.norm()


def test_under_autocast_the_loss_is_that_of_logits_under_autocast() -> None:
    torch.manual_seed(0)
    model = from_config(LlamaConfig(**SIZES))
    ids_BT = torch.randint(256, (2, 40))
    with torch.autocast("cpu", torch.bfloat16):
        found = model_loss(model, ids_BT, ids_BT)
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
        expected = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    weight = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
    by_weight, other = (torch.autograd.grad(loss, weight)[0] for loss in (found, expected))
    assert by_weight.dtype == torch.float32
    # gradients of bfloat16 logits, rounded to 8 bits
    assert ((by_weight - other).norm() / other.norm()).item() < 1e-2
