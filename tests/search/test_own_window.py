"""A model that does not answer several needles in its own window is refused."""

import math
from pathlib import Path

import numpy as np
import pytest

from needles.document import build_documents
from results.measurement import Measurement
from rope.identity import none_factors
from search.own_window import check_own_window, guessing_loss
from workers.model import load_model
from workers.scoring import NeedleScoring

REFERENCE = Path(__file__).parents[2] / "workers/reference"


def measured(*losses: float, num_tokens: int = 14, failure: str | None = None) -> list[Measurement]:
    return [
        Measurement(
            candidate="none",
            document=f"document-{number}",
            split="heldout",
            depth=0.5,
            sum_nll=loss * num_tokens if failure is None else math.nan,
            num_tokens=num_tokens if failure is None else 0,
            seconds=1.0,
            failure=failure,
        )
        for number, loss in enumerate(losses)
    ]


def test_guessing_shares_sixteen_nats_over_the_tokens_of_a_value() -> None:
    # ln 9,000,000 = 16.0127
    assert guessing_loss(measured(0.1, 0.2), num_needles=2) == pytest.approx(16.0127 / 7, abs=1e-4)
    assert guessing_loss(measured(0.1, num_tokens=3), num_needles=1) == pytest.approx(16.0127 / 3, abs=1e-4)


def test_a_model_is_refused_from_values_that_are_more_often_wrong_than_right() -> None:
    # ln 2 / 7 = 0.0990 for each of a value's digits
    check_own_window(measured(0.0, 0.1, 0.197), num_needles=2, length=256)
    with pytest.raises(ValueError, match="must answer 2 needles"):
        check_own_window(measured(0.0, 0.1, 0.198), num_needles=2, length=256)


def test_a_tokenizer_of_several_digits_a_token_may_lose_more_on_each() -> None:
    check_own_window(measured(0.23, num_tokens=6), num_needles=2, length=256)  # ln 2 / 3 = 0.2310
    with pytest.raises(ValueError, match=r"at most 0\.23 nats a token, got 0\.25 \(guessing has 5\.34\)"):
        check_own_window(measured(0.25, num_tokens=6), num_needles=2, length=256)


def test_the_error_is_one_line_and_says_what_to_do() -> None:
    message = (
        r"^the model must answer 4 needles in its own window of 4096 tokens with a loss of at most 0\.10 nats a token, "
        r"got 1\.50 \(guessing has 2\.29\)\. Use --documents\.num-needles 1\.$"
    )
    with pytest.raises(ValueError, match=message):
        check_own_window(measured(1.0, 2.0, num_tokens=28), num_needles=4, length=4096)


def test_a_document_without_a_loss_is_refused_with_its_reason() -> None:
    message = r"measured with 2 needles in its own window of 256 tokens, got no loss: out of memory: 12 GiB\. Find out"
    with pytest.raises(ValueError, match=message):
        check_own_window([*measured(0.0), *measured(0.0, failure="out of memory: 12 GiB")], num_needles=2, length=256)


def test_the_reference_model_answers_one_needle_and_is_refused_two() -> None:
    loaded = load_model(str(REFERENCE / "model"), dtype="float32", device="cpu")
    geometry = loaded.geometry
    factors = none_factors(geometry.rotary_dim, geometry.base, original_length=256, target_length=256)

    def measure(num_needles: int) -> list[Measurement]:
        documents = build_documents(
            loaded.tokenizer,
            REFERENCE / "tom_sawyer.txt",
            split="heldout",
            num_documents=10,
            length=256,
            num_needles=num_needles,
            rng=np.random.default_rng(0),
        )
        return NeedleScoring(loaded, documents).score(factors, [document.id for document in documents])

    check_own_window(measure(1), num_needles=1, length=256)
    with pytest.raises(ValueError, match="must answer 2 needles in its own window of 256 tokens with a loss of at"):
        check_own_window(measure(2), num_needles=2, length=256)
