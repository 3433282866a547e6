"""Objectives: means worked out by hand, the front against its definition, the knee of a known one, and gradients."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from results.measurement import Measurement, mean_loss
from search.objectives import (
    GUESS,
    Aggregate,
    Losses,
    Objectives,
    capped_loss,
    knee,
    pareto_front,
    perplexities,
)
from search.parametrization import Vector

BOTH = Objectives(names=("long", "short"), original=frozenset({"s"}), unscaled=0.5)


def measured(
    document: str, loss: float, *, num_tokens: int = 1, gradient: tuple[float, ...] | None = None
) -> Measurement:
    """Return a measurement with a mean loss, nats a token; a failure for NaN."""
    fails = math.isnan(loss)
    return Measurement(
        candidate="c",
        document=document,
        split="search",
        depth=0.5,
        sum_nll=loss * num_tokens,
        num_tokens=0 if fails else num_tokens,
        seconds=0.0,
        failure="out of memory: no room" if fails else None,
        gradient=gradient,
    )


def dominates(one: Losses, other: Losses) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def random_losses(rng: np.random.Generator, num: int) -> list[Losses]:
    """Return pairs of losses of few values, so that some are equal."""
    return [(float(one), float(other)) for one, other in rng.integers(0, 12, (num, 2))]


@pytest.mark.parametrize("seed", range(20))
def test_a_front_holds_exactly_those_that_nobody_dominates(seed: int) -> None:
    losses = random_losses(np.random.default_rng(seed), 30)
    front = pareto_front(losses)
    free = {one for one in losses if not any(dominates(other, one) for other in losses)}
    assert {losses[place] for place in front} == free
    assert len(front) == len(free)  # of equals one alone
    assert [losses[place] for place in front] == sorted(free)
    assert all(losses.index(losses[place]) == place for place in front)


def test_a_front_worked_out_by_hand() -> None:
    losses = [(3.0, 1.0), (2.0, 2.0), (math.nan, 0.0), (2.0, 3.0), (1.0, 4.0), (2.0, 2.0), (4.0, 1.0)]
    assert pareto_front(losses) == [4, 1, 0]


def test_a_front_of_failures_is_empty() -> None:
    assert pareto_front([(math.nan, 1.0), (0.0, math.nan), (math.nan, math.nan)]) == []
    assert pareto_front([]) == []


def test_the_knee_of_a_bent_line_is_its_bend() -> None:
    # By hand: scaled to the ranges 1 and 10, the bend (0.2, 2) lies 1 - 0.2 - 0.2 below the line, the others less
    front = [(0.0, 10.0), (0.1, 6.0), (0.2, 2.0), (0.6, 1.0), (1.0, 0.0)]
    assert knee(front) == 2


@pytest.mark.parametrize(("along", "across"), [(1.0, 1.0), (0.01, 1.0), (1.0, 300.0)])
def test_units_do_not_move_the_knee(along: float, across: float) -> None:
    # On the curve y = 1 / x from 1/4 to 4 the point farthest below the line of the ends is x = 1, where its slope is -1
    numbers = np.geomspace(0.25, 4.0, 33)
    assert numbers[knee([(along * x, across / x) for x in numbers])] == pytest.approx(1.0)


def test_where_a_front_has_no_bend_the_smallest_sum_is_taken() -> None:
    assert knee([(1.0, 5.0)]) == 0
    assert knee([(1.0, 5.0), (2.0, 3.0)]) == 1
    assert knee([(0.0, 1.0), (0.8, 0.9), (1.0, 0.0)]) == 0  # it bends the other way
    assert knee([(0.0, 2.0), (0.9, 1.5), (1.0, 0.0)]) == 2


def test_the_losses_of_both_lengths_worked_out_by_hand() -> None:
    entries = [measured("a", 1.0), measured("s", 0.75), measured("b", 2.0, num_tokens=4)]
    assert BOTH.losses(entries) == (1.5, 0.25)
    assert Objectives().losses(entries[::2]) == (1.5,)
    assert (BOTH.directions, Objectives().directions) == (("minimize", "minimize"), ("minimize",))


def test_a_lost_needle_counts_as_a_guess_where_losses_are_capped() -> None:
    entries = [measured("a", 1.0, num_tokens=7), measured("b", 9.0, num_tokens=7), measured("s", 8.0, num_tokens=3)]
    capped = Objectives(names=("long", "short"), aggregate="capped", original=frozenset({"s"}), unscaled=0.5)
    guess = math.log(9_000_000)  # values of seven digits, the first of them no zero
    assert capped.losses(entries) == pytest.approx(((1.0 + guess / 7) / 2, guess / 3 - 0.5), rel=1e-12)
    two = replace(capped, num_needles=2)
    assert two.losses(entries) == pytest.approx(((1.0 + 2 * guess / 7) / 2, guess / 3 - 0.5), rel=1e-12)


def test_capped_losses_are_never_above_the_mean_and_equal_it_where_no_needle_is_lost() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        entries = [measured(f"{number}", float(loss)) for number, loss in enumerate(rng.lognormal(1.0, 1.5, 9))]
        assert capped_loss(entries) <= mean_loss(entries)
        easy = [entry for entry in entries if entry.sum_nll <= GUESS]
        if easy:
            assert capped_loss(easy) == mean_loss(easy)


@pytest.mark.parametrize("aggregate", ["mean", "capped"])
def test_a_failure_makes_its_length_nan(aggregate: Aggregate) -> None:
    objectives = Objectives(names=("long", "short"), aggregate=aggregate, original=frozenset({"s"}))
    long, short = objectives.losses([measured("a", 1.0), measured("b", math.nan), measured("s", 1.0)])
    assert math.isnan(long)
    assert short == 1.0


@pytest.mark.parametrize("aggregate", ["mean", "capped"])
def test_a_gradient_is_that_of_the_sum_of_the_losses(aggregate: Aggregate) -> None:
    objectives = Objectives(
        names=("long", "short"),
        aggregate=aggregate,
        original=frozenset({"s", "t"}),
        unscaled=0.5,
    )
    rng = np.random.default_rng(0)
    slopes = {document: rng.normal(size=3) for document in "abcst"}
    levels = dict(zip("abcst", (1.0, 2.5, 0.3, 0.2, 4.0), strict=True))

    def entries(point: Vector) -> Sequence[Measurement]:
        losses = {document: levels[document] + float(slopes[document] @ point) for document in "abcst"}
        return [
            measured(document, losses[document], num_tokens=7, gradient=tuple(slopes[document])) for document in "abcst"
        ]

    step = 1e-3
    differences = [
        (math.fsum(objectives.losses(entries(direction))) - math.fsum(objectives.losses(entries(-direction)))) / 2
        for direction in step * np.eye(3)
    ]
    found = objectives.gradient(entries(np.zeros(3)))
    assert found is not None
    # losses are linear here, so that differences are exact but for rounding, 1e-16 over the step
    np.testing.assert_allclose(found, np.array(differences) / step, atol=1e-11)


def test_there_is_no_gradient_where_one_document_has_none() -> None:
    assert Objectives().gradient([measured("a", 1.0, gradient=(1.0,)), measured("b", 1.0)]) is None
    assert Objectives().gradient([measured("a", 1.0, gradient=(1.0,)), measured("b", math.nan)]) is None


def test_the_short_objective_is_what_is_lost_against_the_unscaled_model() -> None:
    objectives = Objectives(names=("long", "short"), original=frozenset({"s", "t"}))
    relative = objectives.relative_to([measured("s", 0.25), measured("t", 0.75)])
    assert relative.unscaled == 0.5
    assert relative.losses([measured("a", 3.0), measured("s", 0.5), measured("t", 0.5)]) == (3.0, 0.0)


def test_losses_become_perplexities_and_a_ratio() -> None:
    assert perplexities((math.log(3.0), math.log(1.5))) == pytest.approx([3.0, 1.5])
    assert perplexities((1000.0,)) == [math.inf]
    assert math.isnan(perplexities((math.nan,))[0])


def test_an_unscaled_model_that_fails_is_refused_with_its_reason() -> None:
    message = (
        r"^the objective short must be measurable, got a failure of the unscaled model on 2 documents of the original "
        r"length: out of memory: no room\. Mend its cause, or use --objectives long\.$"
    )
    with pytest.raises(ValueError, match=message):
        BOTH.relative_to([measured("s", 1.0), measured("t", math.nan)])
