"""Perplexity of a text: the plain forward's where it fits one window, each form by its own arithmetic beyond."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

import workers.perplexity
from rope.factors import RescaleFactors
from workers.model import LoadedModel
from workers.perplexity import FORMS, Form, TextPerplexity, pooled, text_perplexity

# float32 sums in another order: 2^-24 over some hundred terms of losses of about 10
TOLERANCE = 1e-5
RECEPTIVE_FIELD = 2 * 47
"""Tokens before its own that decide a prediction of the tiny Mistral: two layers with a window of 48."""

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]
Text = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def text() -> Text:
    return np.random.default_rng(2).integers(0, 256, 300)


@pytest.fixture(scope="module")
def llama(load: Load) -> LoadedModel:
    return load("llama")


def plain_nll(loaded: LoadedModel, ids: Text, factors: RescaleFactors | None = None) -> npt.NDArray[np.float64]:
    """Return the loss of each token but the first by the model's plain forward and a softmax written out."""
    with loaded.patch, torch.inference_mode():
        if factors is not None:
            loaded.patch.install(factors)
        logits = loaded.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].double().numpy()
    largest = logits.max(axis=1, keepdims=True)
    logs = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    losses: npt.NDArray[np.float64] = -logs[np.arange(len(ids) - 1), ids[1:]]
    return losses


@pytest.mark.parametrize("form", FORMS)
def test_on_a_short_text_every_form_is_one_full_forward(
    form: Form, architecture: str, load: Load, make_factors: MakeFactors, text: Text
) -> None:
    loaded = load(architecture)
    for factors in (None, make_factors(loaded, "yarn", 1.1)):
        plain = plain_nll(loaded, text[:150], factors)
        measured = text_perplexity(loaded, text[:150], factors, window=200, stride=190, form=form)
        assert measured.sum_nll == pytest.approx(plain.sum(), rel=TOLERANCE)
        assert measured.num_tokens == 149
        assert measured.perplexity == pytest.approx(np.exp(plain.mean()), rel=10 * TOLERANCE)


def test_a_short_text_has_the_loss_that_transformers_computes(llama: LoadedModel, text: Text) -> None:
    input_ids = torch.from_numpy(text)[None]
    with torch.inference_mode():
        loss = llama.model(input_ids=input_ids, labels=input_ids).loss.item()
    measured = text_perplexity(llama, text, None, window=512, stride=256)
    assert math.log(measured.perplexity) == pytest.approx(loss, rel=TOLERANCE)


def test_each_window_of_the_sliding_form_scores_what_is_new_in_it(
    llama: LoadedModel, make_factors: MakeFactors, text: Text
) -> None:
    factors = make_factors(llama, "linear")
    measured = text_perplexity(llama, text, factors, window=100, stride=70)
    assert [window[:3] for window in measured.windows] == [
        (0, 1, 100),
        (70, 100, 170),
        (140, 170, 240),
        (200, 240, 300),
    ]
    losses = [plain_nll(llama, text[start:end], factors)[scored - end :] for start, scored, end, *_ in measured.windows]
    for window, expected in zip(measured.windows, losses, strict=True):
        assert window.sum_nll == pytest.approx(expected.sum(), rel=TOLERANCE)
    assert measured.perplexity == pytest.approx(np.exp(np.concatenate(losses).mean()), rel=10 * TOLERANCE)


@pytest.mark.parametrize("stride", [1, 7, 99, 100, 149])
@pytest.mark.parametrize("num_tokens", [149, 150, 151, 200, 250, 299])
def test_token_weights_sum_to_the_scored_tokens_whatever_the_stride(
    llama: LoadedModel, text: Text, stride: int, num_tokens: int
) -> None:
    measured = text_perplexity(llama, text[:num_tokens], None, window=150, stride=stride)
    scored = [token for window in measured.windows for token in range(window.scored, window.end)]
    assert scored == list(range(1, num_tokens))
    assert sum(window.weight for window in measured.windows) == measured.num_tokens == num_tokens - 1
    assert measured.bucket_counts.sum() == num_tokens - 1
    assert measured.bucket_sums.sum() == pytest.approx(measured.sum_nll)


def test_the_stride_changes_nothing_where_enough_context_stays(load: Load, text: Text) -> None:
    mistral = load("mistral")
    whole = plain_nll(mistral, text)
    window = 140
    for stride in (9, 20, window - RECEPTIVE_FIELD):
        measured = text_perplexity(mistral, text, None, window=window, stride=stride)
        assert measured.sum_nll == pytest.approx(whole.sum(), rel=TOLERANCE)
    far = text_perplexity(mistral, text, None, window=window, stride=130)
    assert abs(far.sum_nll / whole.sum() - 1) > 10 * TOLERANCE


def test_longlora_averages_windows_whole_and_leaves_out_the_last(llama: LoadedModel, text: Text) -> None:
    measured = text_perplexity(llama, text, None, window=100, stride=50, form="longlora")
    # range(0, 300 - 100, 50) is 0, 50, 100, 150, of which the published program drops the last
    assert [window[:3] for window in measured.windows] == [(0, 1, 100), (50, 51, 150), (100, 101, 200)]
    means = [plain_nll(llama, text[start : start + 100]).mean() for start in (0, 50, 100)]
    assert measured.perplexity == pytest.approx(np.exp(np.mean(means)), rel=10 * TOLERANCE)
    assert measured.num_tokens == 3 * 99


def test_temp_lora_averages_the_perplexities_of_chunks(llama: LoadedModel, text: Text) -> None:
    measured = text_perplexity(llama, text, None, window=160, stride=64, form="temp-lora")
    # chunks of 64 with up to 96 tokens before them, the first without any
    spans = [(0, 1, 64), (0, 64, 128), (32, 128, 192), (96, 192, 256), (160, 256, 300)]
    assert [window[:3] for window in measured.windows] == spans
    assert [window.weight for window in measured.windows] == [64, 64, 64, 64, 44]
    losses = [plain_nll(llama, text[start:end])[scored - end :].mean() for start, scored, end in spans]
    expected = sum(np.exp(losses) * [64, 64, 64, 64, 44]) / 300
    assert measured.perplexity == pytest.approx(expected, rel=20 * TOLERANCE)
    assert measured.perplexity > math.exp(measured.sum_nll / measured.num_tokens)  # Jensen's inequality


def test_buckets_say_the_loss_by_how_much_context_was_seen(llama: LoadedModel, text: Text) -> None:
    plain = plain_nll(llama, text)
    measured = text_perplexity(llama, text, None, window=300, stride=100)
    rows = measured.buckets
    assert [row[:2] for row in rows] == [(2**power, 2 ** (power + 1) - 1) for power in range(9)]
    assert [row.num_tokens for row in rows] == [1, 2, 4, 8, 16, 32, 64, 128, 44]
    for row in rows:
        # the token at index i has i tokens before it, and its loss is at index i - 1
        expected = plain[row.first_context - 1 : row.last_context].sum()
        assert row.sum_nll == pytest.approx(expected, rel=TOLERANCE)


def test_with_a_sliding_window_context_is_counted_from_the_windows_start(llama: LoadedModel, text: Text) -> None:
    measured = text_perplexity(llama, text, None, window=100, stride=40, bucket_edges=[10, 60, 100])
    # tokens 10 to 59 of the first window; tokens 60 to 99 of the first and 200 in five others
    assert measured.bucket_counts.tolist() == [50, 40 + 200]


def test_several_texts_are_pooled_by_sums_and_counts(llama: LoadedModel, text: Text) -> None:
    for form in FORMS:
        parts = [
            text_perplexity(llama, part, None, window=100, stride=50, form=form) for part in (text[:120], text[120:])
        ]
        both = pooled(parts)
        assert both.sum_nll == pytest.approx(sum(part.sum_nll for part in parts))
        assert both.num_tokens == sum(part.num_tokens for part in parts)
        assert both.bucket_counts.tolist() == (parts[0].bucket_counts + parts[1].bucket_counts).tolist()
        low, high = sorted(part.perplexity for part in parts)
        assert low <= both.perplexity <= high


def test_logits_are_computed_a_piece_at_a_time(
    architecture: str, load: Load, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(architecture)
    whole = text_perplexity(loaded, text[:150], None, window=150, stride=100)
    vocabulary_size = loaded.model.config.get_text_config().vocab_size
    monkeypatch.setitem(workers.perplexity.LOGIT_BYTES, "cpu", 16 * 4 * vocabulary_size)
    rows: list[int] = []
    head = loaded.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert head is not None
    handle = head.register_forward_hook(lambda module, args, logits: rows.append(logits.shape[1]))
    in_pieces = text_perplexity(loaded, text[:150], None, window=150, stride=100)
    handle.remove()
    assert rows == [16] * 9 + [5]
    assert in_pieces.sum_nll == pytest.approx(whole.sum_nll, rel=TOLERANCE)


def test_the_model_is_left_as_it_was(llama: LoadedModel, make_factors: MakeFactors, text: Text) -> None:
    before = plain_nll(llama, text)
    text_perplexity(llama, text, make_factors(llama, "yarn", 1.3), window=100, stride=50)
    assert np.array_equal(plain_nll(llama, text), before)
    assert "forward" not in llama.model.get_decoder().__dict__  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([1], {}, r"^a text must have at least 2 tokens in one row, got shape \(1,\)\. Give a longer text\.$"),
        ([[1, 2]], {}, r"got shape \(1, 2\)"),
        ([1, 260], {}, r"^a text must hold token ids from 0 to below 260, the model's vocabulary, got 1 to 260\. "),
        ([1, -1], {}, r"got -1 to 1\. Was it tokenised for another model\?$"),
        ([1, 2], {"form": "press"}, r"^form must be one of sliding, longlora, temp-lora, got press\. "),
        ([1, 2], {"window": 1}, r"^window must be at least 2 tokens, got 1\. "),
        (
            [1, 2],
            {"stride": 64},
            r"^stride must be at least 1 and below the window of 64 in the form sliding, got 64\. ",
        ),
        ([1, 2], {"stride": 0, "form": "longlora"}, r"^stride must be at least 1 in the form longlora, got 0\. "),
        ([1, 2], {"stride": 1, "form": "temp-lora"}, r"^stride must be at least 2 and below the window of 64 in the "),
        ([1, 2], {"bucket_edges": [4, 4]}, r"^bucket_edges must be two numbers or more that grow, got \[4, 4\]\. "),
        ([1, 2], {"bucket_edges": [4]}, r"^bucket_edges must be two numbers or more that grow, got \[4\]\. "),
    ],
)
def test_bad_input_is_refused(llama: LoadedModel, ids: list[int], options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"window": 64, "stride": 32} | options
    with pytest.raises(ValueError, match=message):
        text_perplexity(llama, ids, None, **arguments)  # type: ignore[arg-type]


def test_factors_of_another_model_are_refused(llama: LoadedModel, load: Load, make_factors: MakeFactors) -> None:
    with pytest.raises(ValueError, match=r"^factors must be for rotary_dim 8 and base "):
        text_perplexity(llama, [1, 2, 3], make_factors(load("qwen3"), "linear"), window=64, stride=32)


def test_texts_that_were_measured_otherwise_are_not_pooled(llama: LoadedModel, text: Text) -> None:
    measured: list[TextPerplexity] = [
        text_perplexity(llama, text, None, window=300, stride=100, form=form) for form in FORMS[:2]
    ]
    with pytest.raises(ValueError, match=r"^pooled texts must have one form and the same buckets, got sliding and lon"):
        pooled(measured)
    with pytest.raises(
        ValueError, match=r"^a pooled perplexity must have at least one text, got none\. Measure one\.$"
    ):
        pooled([])
