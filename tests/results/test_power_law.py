"""The power law of context: published values come back, intervals hold what they should, and what is refused."""

import math

import numpy as np
import pytest

from results.power_law import PowerLaw, fit_power_law

# Llama 2 Long, arXiv:2309.16039, as notes on the paper quote it: alpha, beta, gamma
PUBLISHED = {
    "7B": (25.4, 0.45, 1.56),
    "13B": (19.5, 0.48, 1.45),
    "34B": (17.7, 0.50, 1.41),
    "70B": (17.9, 0.51, 1.35),
}
CONTEXTS = [2.0**exponent for exponent in range(7, 16)]


def curve(alpha: float, beta: float, gamma: float) -> list[float]:
    return [(alpha / context) ** beta + gamma for context in CONTEXTS]


def values(law: PowerLaw) -> tuple[float, float, float]:
    return law.alpha.value, law.beta.value, law.gamma.value


@pytest.mark.parametrize("size", PUBLISHED)
def test_data_from_the_published_values_give_them_back(size: str) -> None:
    law = fit_power_law(CONTEXTS, curve(*PUBLISHED[size]))
    # the data are exact but for rounding; 1e-6 is what the solver's tolerance of 1e-15 in the squares leaves
    assert values(law) == pytest.approx(PUBLISHED[size], rel=1e-6)
    assert law.residual < 1e-8
    assert law.num_points == 9


def test_published_losses_are_those_done_by_hand() -> None:
    law = fit_power_law(CONTEXTS, curve(*PUBLISHED["34B"]))
    assert law.loss(17.7) == pytest.approx(2.41, rel=1e-6)  # 1 + 1.41
    assert law.loss(4 * 17.7) == pytest.approx(1.91, rel=1e-6)  # sqrt(1/4) + 1.41
    assert law.loss(100 * 17.7) == pytest.approx(1.51, rel=1e-6)  # sqrt(1/100) + 1.41


def test_the_units_of_the_context_and_the_order_of_points_change_nothing_else() -> None:
    losses = curve(*PUBLISHED["7B"])
    in_thousands = fit_power_law([context / 1000 for context in CONTEXTS], losses)
    assert in_thousands.alpha.value == pytest.approx(0.0254, rel=1e-6)
    assert in_thousands.beta.value == pytest.approx(0.45, rel=1e-6)
    backwards = fit_power_law(CONTEXTS[::-1], losses[::-1])
    assert values(backwards) == pytest.approx(PUBLISHED["7B"], rel=1e-6)


def test_intervals_hold_the_true_values_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    truth, num_trials, contexts = PUBLISHED["7B"], 300, np.repeat(CONTEXTS, 2)
    exact = np.repeat(curve(*truth), 2)
    held = np.zeros(3)
    for _ in range(num_trials):
        law = fit_power_law(contexts.tolist(), (exact + rng.normal(0, 0.003, exact.size)).tolist(), confidence=0.9)
        for number, (estimate, true) in enumerate(zip((law.alpha, law.beta, law.gamma), truth, strict=True)):
            assert 0 <= estimate.low <= estimate.value <= estimate.high
            held[number] += estimate.low <= true <= estimate.high
    # three standard errors of a share of 0.9 in 300 trials are 0.052; linearising may cost a little more
    assert (np.abs(held / num_trials - 0.9) < 0.06).all(), held / num_trials


def test_more_confidence_needs_wider_intervals() -> None:
    noisy = [loss + 0.003 * (-1) ** number for number, loss in enumerate(curve(*PUBLISHED["7B"]))]
    narrow, wide = (fit_power_law(CONTEXTS, noisy, confidence=share) for share in (0.5, 0.99))
    assert wide.alpha.low < narrow.alpha.low < narrow.alpha.high < wide.alpha.high
    assert wide.gamma.low < narrow.gamma.low < narrow.gamma.high < wide.gamma.high


def test_a_loss_that_falls_without_end_has_an_interval_of_gamma_that_begins_at_0() -> None:
    rng = np.random.default_rng(1)
    losses = [loss + float(rng.normal(0, 0.002)) for loss in curve(25.4, 0.2, 0.0)]
    law = fit_power_law(CONTEXTS, losses)
    assert law.gamma.low == 0 <= law.gamma.value < law.gamma.high < 1
    assert law.beta.low < 0.2 < law.beta.high


def test_points_that_do_not_determine_the_law_give_endless_intervals() -> None:
    law = fit_power_law([1, 2, 4, 8], [3, 2, 2.001, 2])  # all of the fall lies between the first two points
    for estimate in (law.alpha, law.beta, law.gamma):
        assert (estimate.low, estimate.high) == (0, math.inf)


@pytest.mark.parametrize(
    ("contexts", "losses", "message"),
    [
        (
            [1, 2, 4],
            [3, 2, 1.5],
            r"^a power law must have at least 4 distinct contexts, got 3\. Measure more lengths\.$",
        ),
        ([1, 1, 2, 4], [3, 3, 2, 1.5], r"at least 4 distinct contexts, got 3\. "),
        (
            [1, 2, 4, 8],
            [3, 2, 1.5],
            r"^a power law must have one loss for each context, got 4 contexts and 3 losses\. ",
        ),
        (
            [1, 2, 4, 8],
            [3, 2, 1.5, math.nan],
            r"^a power law must have finite losses at contexts above 0, got others\. ",
        ),
        ([1, 2, math.inf, 8], [3, 2, 1.5, 1], r"must have finite losses at contexts above 0"),
        ([0, 2, 4, 8], [3, 2, 1.5, 1], r"must have finite losses at contexts above 0"),
        ([1, 2, 4, 8], [1, 1.5, 2, 3], r"^losses must fall as the context grows, got none that do\. "),
        ([1, 2, 4, 8], [2, 2, 2, 2], r"^losses must fall as the context grows, got none that do\. "),
    ],
)
def test_points_that_no_power_law_fits_are_refused(contexts: list[float], losses: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fit_power_law(contexts, losses)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_a_confidence_that_is_no_share_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"^confidence must lie between 0 and 1, got "):
        fit_power_law(CONTEXTS, curve(*PUBLISHED["7B"]), confidence=confidence)
