"""A model between its two windows, and its loss without logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig

from rope.factors import RescaleFactors
from tests.workers.tuning.runs import REFERENCE, factors
from workers.tuning.window_model import WindowSwitch, load_trainable, loss_alone

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
HEADS = {
    "plain": LlamaConfig(**TINY),
    "capped": Gemma2Config(**TINY, final_logit_softcapping=2.0),
    "multiplied": CohereConfig(**TINY, logit_scale=0.25),
    "divided": GraniteConfig(**TINY, logits_scaling=4.0),
}
ROUNDING = 1e-5
"""Relative: float32 sums of 64 terms in another order."""


@pytest.fixture
def model() -> Any:
    return load_trainable(str(REFERENCE)).model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 1000, (1, 100), generator=torch.Generator().manual_seed(0))


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def test_short_packs_are_read_by_the_model_as_it_was_loaded_bit_for_bit(model: Any, ids: torch.Tensor) -> None:
    before = logits(model, ids)
    switch = WindowSwitch(model, factors())
    switch.turn_to("long")
    assert not torch.allclose(logits(model, ids), before, rtol=0.1)
    switch.turn_to("short")
    assert torch.equal(logits(model, ids), before)


def test_long_packs_are_read_as_transformers_reads_them_with_these_factors(model: Any, ids: torch.Tensor) -> None:
    """Oracle: transformers' own longrope, told to use the factors at every length."""
    rescaled = factors()
    switch = WindowSwitch(model, rescaled)
    switch.turn_to("long")
    config = model.config.__class__.from_pretrained(REFERENCE)
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "factor": 4.0,
        "attention_factor": rescaled.attention_temperature,
        "long_factor": list(rescaled.values),
        "short_factor": list(rescaled.values),
        "original_max_position_embeddings": 256,
    }
    theirs: Any = AutoModelForCausalLM.from_pretrained(REFERENCE, config=config, dtype=torch.float32)
    assert torch.equal(logits(model, ids), logits(theirs, ids))


def test_short_factors_of_the_factors_are_used_where_there_are_some(model: Any, ids: torch.Tensor) -> None:
    plain = factors()
    both = RescaleFactors.from_json(plain.to_json())
    both = type(both)(**{**_fields(both), "short_values": plain.values, "short_attention_temperature": 1.1})
    long, short = WindowSwitch(model, plain), WindowSwitch(model, both)
    long.turn_to("long")
    expected = logits(model, ids)
    long.restore()
    short.turn_to("short")
    assert torch.equal(logits(model, ids), expected)


def test_factors_of_another_model_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="base"):
        WindowSwitch(model, type(factors())(**{**_fields(factors()), "base": 10_000.0}))


def test_a_window_stays_through_a_backward_pass_that_computes_again(model: Any, ids: torch.Tensor) -> None:
    """With the rotation computed inside what is checkpointed, as some models do, gradients are those without."""
    switch = WindowSwitch(model, factors())
    found = []
    for again in (False, True):
        switch.turn_to("long")
        model.zero_grad()
        forward: Callable[[torch.Tensor], torch.Tensor] = lambda given: model(given).logits.logsumexp(-1).sum()  # noqa: E731
        loss = checkpoint(forward, ids, use_reentrant=False) if again else forward(ids)
        loss.backward()
        found.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("head", list(HEADS))
def test_the_loss_is_that_of_the_models_own_logits_whatever_its_head_does(head: str) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(HEADS[head])  # type: ignore[no-untyped-call]
    ids = torch.randint(0, 64, (2, 32))
    labels = ids.clone()
    labels[0, :5] = -100
    shifted = functional.pad(labels[:, 1:], (0, 1), value=-100)
    expected = functional.cross_entropy(model(ids).logits.flatten(0, 1), shifted.flatten(), reduction="sum")
    expected.backward()  # type: ignore[no-untyped-call]
    by_logits = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    with loss_alone(model):
        loss = model(input_ids=ids, labels=labels, divisor=torch.tensor(8.0), attention_mask=None)
        shared = model(input_ids=ids, labels=labels, shift_labels=shifted, divisor=torch.tensor(8.0))
    assert loss.item() * 8 == pytest.approx(expected.item(), rel=ROUNDING)
    assert shared.item() == pytest.approx(loss.item(), rel=ROUNDING)
    loss.backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad * 8, by_logits[name], rtol=1e-3, atol=1e-4)
    assert model(ids).logits.shape == (2, 32, 64), "the model is as it was afterwards"


def test_a_head_that_does_more_than_is_known_is_refused() -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(HEADS["capped"])  # type: ignore[no-untyped-call]
    model.config.final_logit_softcapping = None
    own = type(model).forward

    def doubled(*args: object, **kwargs: object) -> object:
        output = own(model, *args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    with pytest.raises(ValueError, match="the loss of Gemma2ForCausalLM must be that of its own logits"):
        loss_alone(model).__enter__()


def test_a_model_that_is_no_causal_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}', encoding="utf-8")
    with pytest.raises(ValueError, match="the model must be a causal language model, got a t5 configuration"):
        load_trainable(str(tmp_path))


def _fields(rescaled: RescaleFactors) -> dict[str, Any]:
    return {name: getattr(rescaled, name) for name in rescaled.__dataclass_fields__}
