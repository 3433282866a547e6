"""Measurements and the means over documents."""

import math
from dataclasses import replace

import pytest

from results.measurement import Measurement, candidate_key, mean_loss, perplexity
from rope.linear import linear_factors

FACTORS = linear_factors(8, 10_000.0, original_length=64, target_length=256)


def measured(sum_nll: float, num_tokens: int, failure: str | None = None) -> Measurement:
    return Measurement(
        candidate=candidate_key(FACTORS),
        document="a",
        split="search",
        depth=0.5,
        sum_nll=sum_nll,
        num_tokens=num_tokens,
        seconds=0.1,
        failure=failure,
    )


FAILED = measured(math.nan, 0, "out of memory")


def test_perplexity_is_the_exponential_of_the_mean_of_the_documents_means() -> None:
    # (6 / 3 + 4 / 1) / 2 = 3, while 10 nats over 4 tokens would be 2.5
    measurements = [measured(6.0, 3), measured(4.0, 1)]
    assert mean_loss(measurements) == 3.0
    assert perplexity(measurements) == pytest.approx(20.085536923187668)  # e^3


def test_a_failed_document_leaves_no_number() -> None:
    assert math.isnan(mean_loss([measured(1.0, 1), FAILED]))
    assert math.isnan(perplexity([FAILED]))


def test_the_order_of_documents_does_not_matter() -> None:
    measurements = [measured(sum_nll, 3) for sum_nll in (0.1, 1e9, 0.3, 1e-9)]
    assert mean_loss(measurements) == mean_loss(measurements[::-1])


def test_a_perplexity_too_large_for_a_float_is_infinite() -> None:
    assert perplexity([measured(1000.0, 1)]) == math.inf


def test_a_mean_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one measurement, got none"):
        mean_loss([])


@pytest.mark.parametrize(("sum_nll", "num_tokens"), [(math.nan, 3), (math.inf, 3), (1.0, 0)])
def test_a_measurement_without_a_loss_is_refused(sum_nll: float, num_tokens: int) -> None:
    with pytest.raises(ValueError, match="must have a finite sum_nll and at least one token, got"):
        measured(sum_nll, num_tokens)


@pytest.mark.parametrize(("sum_nll", "num_tokens"), [(0.0, 0), (math.nan, 3)])
def test_a_failure_with_numbers_is_refused(sum_nll: float, num_tokens: int) -> None:
    with pytest.raises(ValueError, match="a failed measurement must have a NaN sum_nll and no tokens, got"):
        measured(sum_nll, num_tokens, "out of memory")


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a gradient must hold finite numbers, got \(1.0, nan\)\. Give the reason"):
        replace(measured(1.0, 1), gradient=(1.0, math.nan))


def test_a_failure_with_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a failed measurement must have no gradient, got 2 numbers\. Drop one"):
        replace(FAILED, gradient=(1.0, 2.0))


def test_a_key_depends_on_what_a_model_computes_and_on_nothing_else() -> None:
    key = candidate_key(FACTORS)
    assert len(key) == 16
    assert key == candidate_key(replace(FACTORS, method="other", target_length=512, critical_dim=1))
    assert key == candidate_key(FACTORS.with_provenance(paper="PI"))
    others = [
        FACTORS.with_temperature(1.1),
        replace(FACTORS, num_start_tokens=4),
        replace(FACTORS, base=20_000.0),
        replace(FACTORS, values=(1.0, *FACTORS.values[1:])),
    ]
    assert len({key, *map(candidate_key, others)}) == 5
