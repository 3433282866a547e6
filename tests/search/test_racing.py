"""The race: Optuna's own pruner decides the same, apart from what is written down, and looks are few."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import optuna
import pytest
from optuna.pruners import WilcoxonPruner
from optuna.trial import TrialState, create_trial

from search.racing import Racing


def optuna_prunes(losses: Sequence[float], reference: Sequence[float], *, p_value: float = 0.1) -> bool:
    """Return what Optuna's pruner says of a trial beside the best one."""
    study = optuna.create_study()
    best = create_trial(
        state=TrialState.COMPLETE, value=float(np.mean(reference)), intermediate_values=dict(enumerate(reference))
    )
    study.add_trial(best)
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values=dict(enumerate(losses))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental and warns of what it cannot decide
        return WilcoxonPruner(p_threshold=p_value).prune(study, study.trials[-1])


@pytest.mark.parametrize("num_documents", [4, 8, 16, 33])
@pytest.mark.parametrize("p_value", [0.02, 0.1, 0.3])
def test_the_rule_is_that_of_optuna_s_pruner(num_documents: int, p_value: float) -> None:
    rng = np.random.default_rng(num_documents)
    racing = Racing(p_value=p_value)
    answers = []
    for _ in range(60):
        reference = rng.lognormal(-2.0, 2.0, num_documents)  # as heavy-tailed as needles are
        factors = rng.lognormal(rng.uniform(-0.5, 0.8), 0.7, num_documents)
        losses = reference * factors
        equal = rng.random(num_documents) < 0.2
        losses[equal] = reference[equal]
        answers.append(racing.is_worse(losses.tolist(), reference.tolist()))
        assert answers[-1] == optuna_prunes(losses.tolist(), reference.tolist(), p_value=p_value)
    assert False in answers
    # With 4 documents the smallest chance is 1 / 16
    assert (True in answers) == (num_documents > 4 or p_value > 1 / 16)


def test_a_candidate_with_a_failure_is_dropped_which_optuna_would_keep() -> None:
    losses, reference = [math.nan, 0.1, 0.1, 0.1, 0.1], [1.0] * 5
    assert Racing().is_worse(losses, reference)
    assert not optuna_prunes(losses, reference)


def test_means_are_compared_on_shared_documents_alone_which_optuna_does_not() -> None:
    # Worse on each of eight easy documents; the leader's mean over all 16 is higher than the candidate's over the eight
    reference = [0.1] * 8 + [5.0] * 8
    losses = [0.2 + 0.01 * number for number in range(8)]
    assert Racing().is_worse(losses, reference[:8])
    assert not optuna_prunes(losses, reference)


def test_the_smallest_chances_worked_out_by_hand() -> None:
    # All of n differences above 0 have the chance 2^-n: 1/16 of four and 1/32 of five
    worse, best = [1.1, 1.2, 1.3, 1.4, 1.5], [1.0] * 5
    assert Racing(p_value=0.063).is_worse(worse[:4], best[:4])
    assert not Racing(p_value=0.062).is_worse(worse[:4], best[:4])
    assert Racing(p_value=0.032).is_worse(worse, best)
    assert not Racing(p_value=0.031).is_worse(worse, best)


def test_one_that_wins_a_lost_needle_back_is_not_dropped_for_being_a_little_worse_elsewhere() -> None:
    reference = [0.1] * 15 + [6.0]
    losses = [0.11 + 0.001 * number for number in range(15)] + [1.0]
    assert not Racing(p_value=0.5).is_worse(losses, reference)
    assert Racing().is_worse(losses[:15], reference[:15])


def test_nobody_is_worse_than_himself_and_no_two_are_worse_than_each_other() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, other = rng.lognormal(0.0, 1.0, (2, 9)).tolist()
        assert not Racing(p_value=0.99).is_worse(one, one)
        assert not (Racing().is_worse(one, other) and Racing().is_worse(other, one))


def test_equals_are_seldom_dropped_and_clearly_worse_ones_nearly_always() -> None:
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0.0, 1.0, (2, 300, 16))
    equal = [Racing().is_worse(one.tolist(), other.tolist()) for one, other in zip(*noise, strict=True)]
    assert np.mean(equal) < 0.15  # the chance is 0.1, and 300 draws are off by 0.05 once in 200
    worse = [Racing().is_worse((2 * one).tolist(), one.tolist()) for one in noise[0]]
    assert all(worse)


@pytest.mark.parametrize(
    ("num_documents", "looks"),
    [(1, [1]), (4, [4]), (5, [4, 5]), (8, [4, 8]), (20, [4, 8, 16, 20]), (100, [4, 8, 16, 32, 64, 100])],
)
def test_looks_double_and_the_last_one_is_after_all(num_documents: int, looks: list[int]) -> None:
    assert Racing().looks(num_documents) == looks


@pytest.mark.parametrize("p_value", [0.0, 1.0, -0.1, math.nan])
def test_a_chance_that_is_none_is_refused(p_value: float) -> None:
    message = rf"^race\.p_value must lie between 0 and 1, got {p_value:g}\. Correct it\.$"
    with pytest.raises(ValueError, match=message):
        Racing(p_value=p_value)


def test_a_look_after_too_few_documents_is_refused() -> None:
    message = r"^race\.first_look must be at least 4 documents, got 3: fewer prove nothing\. Raise it\.$"
    with pytest.raises(ValueError, match=message):
        Racing(first_look=3)
