"""Retention: the switch leaves every bit, pinned factors move the logits by what a plain softmax says."""

from collections.abc import Callable
from dataclasses import replace
from math import isnan
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, PreTrainedConfig

import workers.perplexity
from rope.factors import RescaleFactors
from tests.workers.conftest import SIZES, VOCABULARY, WINDOW
from workers.model import LoadedModel, load_model
from workers.retention import retention

# float32 sums in another order: 2^-24 over some hundred terms, of logits of about 10
TOLERANCE = 1e-5

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]
Text = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def text() -> Text:
    return np.random.default_rng(3).integers(0, 256, WINDOW)


def plain_logits(loaded: LoadedModel, ids: Text, factors: RescaleFactors | None = None) -> Tensor:
    """Return the logits of the model's plain forward, shape (T, V)."""
    with loaded.patch, torch.inference_mode():
        if factors is not None:
            loaded.patch.install(factors)
        logits: Tensor = loaded.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
    return logits


def embedding_of(loaded: LoadedModel) -> Tensor:
    weight = loaded.model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def test_the_switch_is_exact_and_pinned_factors_differ_by_the_divergence_of_full_logits(
    architecture: str, load: Load, make_factors: MakeFactors, text: Text
) -> None:
    loaded = load(architecture)
    factors = make_factors(loaded, "yarn", 1.1)
    found = retention(loaded, text, factors)
    assert found.switched == (0.0, 0.0, WINDOW, WINDOW)
    original, moved = plain_logits(loaded, text), plain_logits(loaded, text, factors)
    log_q, log_p = (logits.double().log_softmax(dim=-1) for logits in (moved, original))
    divergence = functional.kl_div(log_q, log_p, reduction="sum", log_target=True).item()
    # Of Gemma 3's two layers one is rescaled: its logits move by 0.03, with the rounding below by a thousandth of that
    assert divergence > 0.01
    assert found.pinned.sum_divergence == pytest.approx(divergence, rel=100 * TOLERANCE)
    assert found.pinned.largest_difference == pytest.approx((original - moved).abs().max().item(), rel=10 * TOLERANCE)
    assert found.pinned.num_same_top == (original.argmax(dim=-1) == moved.argmax(dim=-1)).sum()
    assert found.pinned.num_positions == WINDOW


def test_factors_that_are_none_move_nothing(load: Load, make_factors: MakeFactors, text: Text) -> None:
    loaded = load("llama")
    assert retention(loaded, text, make_factors(loaded, "none")).pinned == (0.0, 0.0, WINDOW, WINDOW)


def test_short_factors_are_what_is_switched_back_to(load: Load, make_factors: MakeFactors, text: Text) -> None:
    loaded = load("llama")
    short = make_factors(loaded, "ntk")
    factors = replace(make_factors(loaded, "yarn", 1.1), short_values=short.values)
    original, moved = plain_logits(loaded, text), plain_logits(loaded, text, short)
    difference = (original - moved).abs().max().item()
    assert difference > 0
    found = retention(loaded, text, factors).switched
    assert found.largest_difference == pytest.approx(difference, rel=10 * TOLERANCE)


def test_the_attention_temperature_is_pinned_too(load: Load, make_factors: MakeFactors, text: Text) -> None:
    loaded = load("llama")
    assert retention(loaded, text, make_factors(loaded, "none", 1.3)).pinned.sum_divergence > 0.1


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ],
)
def test_a_model_that_switches_by_itself_is_switched_back_exactly(
    scaling: dict[str, object],
    save_model: Callable[[PreTrainedConfig], Path],
    make_factors: MakeFactors,
    text: Text,
) -> None:
    sizes = SIZES | {"rope_parameters": scaling | {"rope_theta": 10_000.0, "original_max_position_embeddings": WINDOW}}
    folder = save_model(LlamaConfig(**sizes | {"max_position_embeddings": 4 * WINDOW}))
    loaded = load_model(str(folder), dtype="float32", device="cpu", original_length=WINDOW)
    found = retention(loaded, text, make_factors(loaded, "yarn", 1.1))
    assert found.switched == (0.0, 0.0, WINDOW, WINDOW)
    assert found.pinned.sum_divergence > 0.1


def test_logits_are_compared_a_piece_at_a_time(
    architecture: str, load: Load, make_factors: MakeFactors, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(architecture)
    factors = make_factors(loaded, "linear")
    whole = retention(loaded, text, factors)
    # Room for eight copies of the logits of 24 positions
    monkeypatch.setitem(workers.perplexity.LOGIT_BYTES, "cpu", 8 * 24 * 4 * VOCABULARY)
    rows: list[int] = []
    head = loaded.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert head is not None
    handle = head.register_forward_hook(lambda module, args, logits: rows.append(logits.shape[1]))
    in_pieces = retention(loaded, text, factors)
    handle.remove()
    assert rows == [24, 24, 24, 24, 16, 16] * 2
    assert in_pieces.switched == whole.switched
    assert in_pieces.pinned.sum_divergence == pytest.approx(whole.pinned.sum_divergence, rel=100 * TOLERANCE)
    assert in_pieces.pinned.num_positions == WINDOW


def test_a_model_that_a_long_text_leaves_changed_is_found_out(
    load: Load, make_factors: MakeFactors, text: Text
) -> None:
    loaded = load("llama")
    embedding = embedding_of(loaded)
    before = embedding.clone()

    def wear(module: object, args: tuple[Tensor], output: Tensor) -> None:
        if args[0].shape[1] > WINDOW:
            embedding.add_(0.01)

    handle = loaded.model.get_input_embeddings().register_forward_hook(wear)
    found = retention(loaded, text, make_factors(loaded, "yarn"))
    handle.remove()
    assert not torch.equal(embedding, before)
    assert found.switched.largest_difference > 0.0
    assert found.switched.sum_divergence > 0.0


def test_logits_that_are_no_numbers_give_no_number(load: Load, make_factors: MakeFactors, text: Text) -> None:
    loaded = load("llama")
    embedding_of(loaded).data[int(text[20])] = float("nan")
    found = retention(loaded, text, make_factors(loaded, "yarn"))
    assert isnan(found.pinned.largest_difference)
    assert isnan(found.pinned.sum_divergence)
    assert isnan(found.switched.largest_difference)


def test_tokens_that_a_model_excludes_are_no_difference(load: Load, make_factors: MakeFactors, text: Text) -> None:
    loaded = load("llama")
    head = loaded.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert head is not None
    plain = retention(loaded, text, make_factors(loaded, "yarn"))
    handle = head.register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, torch.tensor([7]), -torch.inf)
    )
    found = retention(loaded, text, make_factors(loaded, "yarn"))
    handle.remove()
    assert found.switched.sum_divergence == found.switched.largest_difference == 0.0
    assert found.pinned.sum_divergence == pytest.approx(plain.pinned.sum_divergence, rel=0.1)  # one token of 260


def test_the_model_is_left_as_it_was(load: Load, make_factors: MakeFactors, text: Text) -> None:
    loaded = load("gemma3")
    before = plain_logits(loaded, text)
    retention(loaded, text, make_factors(loaded, "yarn", 1.3))
    assert torch.equal(plain_logits(loaded, text), before)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1], r"^a text must have at least 2 tokens in one row, got shape \(1,\)\. "),
        ([1, VOCABULARY], r"^a text must hold token ids from 0 to below 260, the model's vocabulary, got 1 to 260\. "),
    ],
)
def test_bad_input_is_refused(load: Load, make_factors: MakeFactors, ids: list[int], message: str) -> None:
    loaded = load("llama")
    with pytest.raises(ValueError, match=message):
        retention(loaded, ids, make_factors(loaded, "yarn"))


def test_factors_of_another_model_are_refused(load: Load, make_factors: MakeFactors, text: Text) -> None:
    with pytest.raises(ValueError, match=r"^factors must be for rotary_dim 8 and base "):
        retention(load("llama"), text, make_factors(load("qwen3"), "yarn"))
