"""Which attention kernel a model gets: one that agrees with the definition, the fastest of those."""

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from tests.workers.conftest import SIZES, SOFTCAPPED, WIDE
from workers.attention import PREFIX, AttentionShape, attention_shape, choose_kernel, register
from workers.attention_kernels import AttentionTerms, kernels, plain, sdpa

CPU = torch.device("cpu")
SHAPE = AttentionShape(4, 2, 12)


@pytest.fixture(autouse=True)
def little_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The piece that kernels are timed with, in milliseconds on a CPU."""
    monkeypatch.setattr("workers.attention.NUM_TIMED_KEYS", 256)
    monkeypatch.setattr("workers.attention.NUM_TIMED_QUERIES", 128)


def choose(caplog: pytest.LogCaptureFixture, found: dict[str, Any], shape: AttentionShape = SHAPE) -> str:
    with caplog.at_level(logging.INFO, logger="workers.attention"):
        return choose_kernel(found, shape, device=CPU, dtype=torch.float32)


def refuse(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    raise RuntimeError("\nhead_dim 12 is not supported\nby this kernel")


def refuse_in_silence(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    raise NotImplementedError


def without_scale(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    return sdpa(query, key, value, terms._replace(scale=1.0))


def without_windows(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    return sdpa(query, key, value, terms._replace(window=None))


def without_cap(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    return sdpa(query, key, value, terms._replace(softcap=None))


def with_a_window_too_long(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    return sdpa(query, key, value, terms._replace(window=terms.window and terms.window + 1))


def aligned_to_the_upper_left(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    num_queries = query.shape[2]
    return sdpa(query, key[:, :, :num_queries], value[:, :, :num_queries], terms)


def heads_first(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    return sdpa(query, key, value, terms).transpose(1, 2)


def without_numbers(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    return sdpa(query, key, value, terms) * torch.nan


def slow(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    time.sleep(0.1)  # a hundred times as long as the other
    return sdpa(query, key, value, terms)


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (refuse, "RuntimeError: head_dim 12 is not supported"),
        (refuse_in_silence, "NotImplementedError: "),
        (without_scale, "its output differs by "),
        (without_windows, "its output differs by "),
        (with_a_window_too_long, "its output differs by "),
        (aligned_to_the_upper_left, "its output differs by "),
        (heads_first, "its output differs by inf"),
        (without_numbers, "its output differs by nan"),
    ],
)
def test_a_kernel_that_cannot_or_is_wrong_is_passed_over_with_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture, attend: Callable[..., Tensor], reason: str
) -> None:
    assert choose(caplog, {"fast": attend, "sdpa": sdpa}) == "sdpa"
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1
    assert lines[0].startswith(f"attention by fast is not used: {reason}")
    assert "\n" not in lines[0]


def test_a_cap_of_the_scores_is_asked_for_where_the_model_has_one(caplog: pytest.LogCaptureFixture) -> None:
    found = {"without cap": without_cap, "sdpa": slow}
    assert choose(caplog, found) == "without cap"
    assert choose(caplog, found, SHAPE._replace(softcap=2.0)) == "sdpa"
    assert "attention by without cap is not used: its output differs by " in caplog.text


def test_kernels_are_tried_without_gradients_as_scoring_calls_them(caplog: pytest.LogCaptureFixture) -> None:
    def gradients_are_off(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
        return sdpa(query, key, value, terms) * (1.0 - torch.is_grad_enabled())

    assert choose(caplog, {"without gradients": gradients_are_off, "sdpa": slow}) == "without gradients"


@pytest.mark.parametrize("slow_first", [True, False])
def test_the_faster_of_two_that_agree_is_taken(caplog: pytest.LogCaptureFixture, slow_first: bool) -> None:
    found = {"slow": slow, "fast": sdpa} if slow_first else {"fast": sdpa, "slow": slow}
    assert choose(caplog, found) == "fast"
    timed = [record.getMessage() for record in caplog.records]
    assert len(timed) == 1
    assert timed[0].startswith("attention of 128 queries to 256 keys: ")
    assert all(f"{name} " in timed[0] for name in found)


def test_where_there_is_one_kernel_nothing_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    assert choose(caplog, {"only": refuse}) == "only"
    assert choose(caplog, dict(kernels(CPU, torch.float32))) == "sdpa"
    assert caplog.text == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [SHAPE, AttentionShape(8, 1, 64), AttentionShape(2, 2, 128, softcap=30.0)])
def test_kernels_that_round_as_the_precision_does_agree(
    caplog: pytest.LogCaptureFixture, shape: AttentionShape, dtype: torch.dtype
) -> None:
    assert choose_kernel({"plain": plain, "sdpa": slow}, shape, device=CPU, dtype=dtype) == "plain"
    assert "not used" not in caplog.text


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (LlamaConfig(**SIZES), AttentionShape(4, 2, 8)),
        (LlamaConfig(**SIZES | WIDE), AttentionShape(4, 2, 16)),
        (LlamaConfig(**SIZES | {"num_key_value_heads": None}), AttentionShape(4, 4, 8)),
        (GPTNeoXConfig(**SIZES), AttentionShape(4, 4, 8)),
        (Gemma2Config(**SIZES | WIDE | SOFTCAPPED), AttentionShape(4, 2, 16, 5.0)),
        (Gemma3Config(text_config=Gemma3TextConfig(**SIZES | WIDE)), AttentionShape(4, 2, 16)),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_configuration_says_the_heads(config: PreTrainedConfig, shape: AttentionShape) -> None:
    if isinstance(config, GPTNeoXConfig):
        config.num_key_value_heads = None  # SIZES has them; the architecture has no such thing
    assert attention_shape(config) == shape


def of_transformers(name: str) -> Callable[..., tuple[Tensor, None]]:
    register({name: sdpa})
    function: Callable[..., tuple[Tensor, None]] = AttentionInterface()[PREFIX + name]  # type: ignore[no-untyped-call]
    return function


def parts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, length, 16, generator=generator) for heads, length in ((4, 5), (2, 9), (2, 9))]


def test_a_registered_kernel_takes_what_layers_say() -> None:
    attend, (query, key, value) = of_transformers("registered"), parts()
    assert PREFIX + "registered" in AttentionMaskInterface()  # type: ignore[no-untyped-call]
    module = nn.Module()
    sinks = torch.ones(4)
    for said, terms in (
        ({}, AttentionTerms(0.25)),  # 16 dimensions
        ({"scaling": 0.3, "dropout": 0.0, "cache_position": None}, AttentionTerms(0.3)),
        ({"scaling": 0.3, "sliding_window": 3}, AttentionTerms(0.3, 3)),
        ({"scaling": 0.3, "softcap": 2.0}, AttentionTerms(0.3, None, 2.0)),
        ({"scaling": 0.3, "s_aux": sinks}, AttentionTerms(0.3, None, None, sinks)),
    ):
        options: dict[str, Any] = said
        found, weights = attend(module, query, key, value, None, **options)
        assert weights is None
        assert torch.equal(found, sdpa(query, key, value, terms))


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (torch.ones(1, 9), {}),
        (None, {"dropout": 0.1}),
        (None, {"is_causal": False}),
    ],
)
def test_attention_that_kernels_do_not_have_is_refused(mask: Tensor | None, options: dict[str, Any]) -> None:
    message = r"^attention must be causal, without padding and dropout, got otherwise\. Use another kernel\.$"
    with pytest.raises(ValueError, match=message):
        of_transformers("registered")(nn.Module(), *parts(), mask, **options)


def test_a_layer_that_looks_ahead_is_refused() -> None:
    layer = nn.Module()
    layer.is_causal = False  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"^attention must be causal"):
        of_transformers("registered")(layer, *parts(), None)
