"""A trimmed forward: the plain forward's logits and gradients, from what decides them alone."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from needles.document import NeedleDocument
from rope.factors import RescaleFactors
from tests.workers.architectures import TRIMMABLE
from tests.workers.trimming import (
    CPU,
    NUM_KEPT,
    NUM_TOKENS,
    SDPA,
    TOLERANCE,
    agree,
    from_config,
    ids,
    llama_of_three_layers,
    make_model,
    plain_logits,
    state,
    tiny,
    trimmed,
    trimmed_logits,
)
from workers.attention import PREFIX, register
from workers.attention_kernels import AttentionTerms, sdpa
from workers.model import LoadedModel
from workers.scoring import NeedleScoring
from workers.trimmed import HALF_TOLERANCE, trimming_refusal

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]
Documents = list[NeedleDocument]


@pytest.fixture
def llama() -> PreTrainedModel:
    """A tiny LLaMA."""
    return llama_of_three_layers()


@pytest.mark.parametrize("name", list(TRIMMABLE))
def test_the_logits_are_those_of_the_plain_forward_with_eager_attention(name: str) -> None:
    model = tiny(name)
    expected = plain_logits(model, ids())
    # Whole, pieces that end with the document, uneven ones, and shorter than the sliding windows of 48
    for piece_length in (1000, NUM_TOKENS, 64, 50, 20):
        assert agree(trimmed_logits(model, ids(), piece_length), expected), piece_length


@pytest.mark.parametrize("name", list(TRIMMABLE))
def test_a_model_whose_logits_agree_is_not_refused(name: str) -> None:
    assert trimming_refusal(tiny(name), attention=SDPA, device=CPU) == ""


@pytest.mark.parametrize(("num_tokens", "num_kept"), [(128, 1), (128, 127), (128, 128), (128, 200), (7, 3), (1, 1)])
@pytest.mark.parametrize("piece_length", [1, 7, 1000])
def test_any_number_of_positions_may_be_kept(num_tokens: int, num_kept: int, piece_length: int) -> None:
    model = tiny("gemma3")
    expected = plain_logits(model, ids(1, num_tokens), num_kept)
    assert agree(trimmed_logits(model, ids(1, num_tokens), piece_length, num_kept=num_kept), expected)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("window", [1, 5, 50, 127, 500])
def test_sliding_windows_of_any_length_are_read_across_pieces(name: str, window: int) -> None:
    config = TRIMMABLE[name]()
    config.sliding_window = window
    model = from_config(config)
    expected = plain_logits(model, ids())
    for piece_length in (20, 50, 100):
        assert agree(trimmed_logits(model, ids(), piece_length), expected)


def test_a_document_has_the_same_logits_in_any_batch() -> None:
    model = tiny("qwen3")
    together = trimmed_logits(model, ids(4), 50)
    for number in range(4):
        assert agree(trimmed_logits(model, ids(4)[number : number + 1], 50), together[number : number + 1])


@pytest.mark.parametrize("attention", ["sdpa", "plain"])
def test_in_bfloat16_rounding_is_no_worse_than_the_plain_forwards(attention: str) -> None:
    exact = plain_logits(tiny("llama"), ids())
    model = make_model("llama").bfloat16()
    rough = plain_logits(model, ids()).float()
    found = trimmed_logits(model, ids(), 50, attention=PREFIX + attention).float()
    # The trimmed forward differs from the plain one as two roundings of one number do, and no more than the model's
    # tolerance
    assert (found - rough).norm() <= HALF_TOLERANCE * rough.norm()
    assert (found - exact).norm() <= 1.5 * (rough - exact).norm()


class Seen(nn.Module):
    """Counts the tokens that go through modules, in a forward in pieces."""

    def __init__(self, model: PreTrainedModel, *names: str) -> None:
        super().__init__()
        self.lengths: dict[str, list[int]] = {name: [] for name in names}
        for name in names:
            model.get_submodule(name).register_forward_pre_hook(partial(self.count, name))

    def count(self, name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.lengths[name].append(args[0].shape[1])


def test_the_last_layer_computes_what_is_kept_and_keys_and_values_of_all_tokens(llama: PreTrainedModel) -> None:
    last = ["model.layers.2.mlp", "model.layers.2.self_attn.o_proj", "model.norm", "lm_head"]
    keys = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(3) for part in "kv"]
    seen = Seen(llama, *last, *keys)
    trimmed_logits(llama, ids(), 50)
    assert [seen.lengths[name] for name in last] == [[NUM_KEPT]] * 4
    # 119 tokens come before those that are kept
    assert [seen.lengths[name] for name in keys] == [[50, 50, 28]] * 4 + [[50, 50, 19, 9]] * 2


def test_all_other_layers_read_every_token_once_and_never_more_than_a_piece(llama: PreTrainedModel) -> None:
    names = [f"model.layers.{layer}.{part}" for layer in range(2) for part in ("mlp", "self_attn.q_proj")]
    seen = Seen(llama, *names)
    trimmed_logits(llama, ids(), 50)
    assert [seen.lengths[name] for name in names] == [[50, 50, 28]] * 4


def test_what_is_kept_may_be_longer_than_a_piece(llama: PreTrainedModel) -> None:
    seen = Seen(llama, "model.layers.2.mlp", "model.norm")
    assert agree(trimmed_logits(llama, ids(), 20, num_kept=50), plain_logits(llama, ids(), 50))
    assert seen.lengths == {"model.layers.2.mlp": [20, 20, 10, 128], "model.norm": [50, 128]}


def test_each_piece_comes_with_its_own_positions(llama: PreTrainedModel) -> None:
    layer = llama.get_submodule("model.layers.2")
    forward = layer.forward
    seen: list[tuple[list[int], int]] = []

    @wraps(forward)
    def read(hidden_states: Tensor, *, position_ids: Tensor, **kwargs: Any) -> Tensor:
        seen.append((position_ids[0].tolist(), kwargs["position_embeddings"][0].shape[1]))
        out: Tensor = forward(hidden_states, position_ids=position_ids, **kwargs)
        return out

    layer.forward = read
    trimmed_logits(llama, ids(), 50)
    ends = [0, 50, 100, 119, 128]
    assert seen == [(list(range(start, end)), end - start) for start, end in pairwise(ends)]


@pytest.mark.parametrize("has_own_forward", [False, True])
def test_the_model_is_as_it_was_also_after_an_exception(llama: PreTrainedModel, has_own_forward: bool) -> None:
    if has_own_forward:  # as accelerate gives it to layers on several devices
        layer = llama.get_submodule("model.layers.1")
        layer.forward = partial(layer.forward)
    expected, found = plain_logits(llama, ids()), trimmed_logits(llama, ids(), 50)
    before = state(llama)
    with trimmed(llama, 50):
        assert state(llama) != before
    assert state(llama) == before
    trimmed_logits(llama, ids(), 50)
    assert state(llama) == before
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), trimmed(llama, 50):
            raise error
        assert state(llama) == before

    def raise_late(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].shape[1] == 28:
            raise MemoryError

    hook = llama.get_submodule("model.layers.1.mlp").register_forward_pre_hook(raise_late)
    with pytest.raises(MemoryError):
        trimmed_logits(llama, ids(), 50)
    hook.remove()
    assert state(llama) == before
    assert torch.equal(plain_logits(llama, ids()), expected)
    assert torch.equal(trimmed_logits(llama, ids(), 50), found)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_nothing_of_a_layers_cache_outlives_it(llama: PreTrainedModel, with_gradient: bool) -> None:
    kept: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    def watch(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
        kept.extend(weakref.ref(part.untyped_storage()) for part in (key, value))
        assert kept[-1]() is not None
        return sdpa(query, key, value, terms)

    def begin_layer(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        alive.append(any(reference() is not None for reference in kept))

    register({"watch": watch})
    llama.requires_grad_(False)
    llama.get_submodule("model.layers.1.input_layernorm").register_forward_pre_hook(begin_layer)
    gc.disable()  # a cycle of references would keep a layer's keys until Python happens to look for it
    try:
        with torch.inference_mode(not with_gradient), trimmed(llama, 50, attention=PREFIX + "watch"):
            llama(input_ids=ids(), use_cache=False)
        assert not any(reference() is not None for reference in kept)
    finally:
        gc.enable()
    # At the first piece of a layer nothing is left of the one before, at the others its own
    assert alive == ([False] if with_gradient else [False, True, True])


def test_a_model_in_several_places_gives_the_same_bits(llama: PreTrainedModel, tmp_path: Path) -> None:
    expected = trimmed_logits(llama, ids(), 50)
    parts = ["embed_tokens", *(f"layers.{number}" for number in range(3)), "norm", "rotary_emb"]
    places = {f"model.{part}": "disk" if part in ("layers.1", "layers.2") else "cpu" for part in parts}
    spread = dispatch_model(llama, places | {"lm_head": "cpu"}, offload_dir=str(tmp_path))
    assert next(spread.get_submodule("model.layers.2").parameters()).is_meta
    for _ in range(2):
        assert torch.equal(trimmed_logits(spread, ids(), 50), expected)


def loss_and_gradient(model: PreTrainedModel, embeddings_BTN: Tensor, targets_BA: Tensor) -> tuple[Tensor, Tensor]:
    embeddings_BTN = embeddings_BTN.clone().requires_grad_()
    logits_BTV = model(inputs_embeds=embeddings_BTN, use_cache=False).logits[:, -NUM_KEPT:]
    loss = functional.cross_entropy(logits_BTV.transpose(1, 2), targets_BA)
    return loss.detach(), torch.autograd.grad(loss, embeddings_BTN)[0]


@pytest.mark.parametrize("name", list(TRIMMABLE))
def test_the_gradient_by_the_embeddings_is_that_of_the_plain_forward(name: str) -> None:
    model = tiny(name).requires_grad_(False)
    embeddings_BTN = model.get_input_embeddings()(ids())
    loss, expected = loss_and_gradient(model, embeddings_BTN, ids()[:, :NUM_KEPT])
    with trimmed(model, 50):
        trimmed_loss, found = loss_and_gradient(model, embeddings_BTN, ids()[:, :NUM_KEPT])
    assert agree(trimmed_loss, loss)
    # The way back takes about twice as many sums in another order, through the slopes of a sharp attention
    assert agree(found, expected, 10 * TOLERANCE)


@pytest.mark.parametrize("most_kept", [0, 2**26])
def test_the_gradient_by_the_factors_is_that_of_the_plain_forward(
    architecture: str,
    load: Load,
    make_factors: MakeFactors,
    documents: Documents,
    most_kept: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.gradient.MOST_KEPT_BYTES", most_kept)
    loaded = load(architecture)
    assert loaded.is_trimmed
    factors = make_factors(loaded, "yarn", 1.1)
    names = [document.id for document in documents]
    found, expected = (
        NeedleScoring(replace(loaded, is_trimmed=is_trimmed), documents).score_with_gradient(factors, names)
        for is_trimmed in (True, False)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.sum_nll == pytest.approx(theirs.sum_nll, rel=TOLERANCE)
        gradient = np.array(theirs.gradient)
        # Sums over 128 positions whose terms partly cancel
        assert np.abs(np.array(ours.gradient) - gradient).max() <= 10 * TOLERANCE * np.abs(gradient).max()
