"""How long a worker may be silent: the user's limit, or one that is learnt for each length of document."""

import pytest

from workers.deadline import Deadline


def test_the_users_limit_holds_for_each_document() -> None:
    deadline = Deadline(2.5)
    deadline.learn(128, 100.0)
    assert deadline.seconds([128]) == 2.5
    assert deadline.seconds([128, 128, 64]) == 7.5


def test_an_hour_is_given_to_a_length_of_which_nothing_is_known() -> None:
    deadline = Deadline(None)
    deadline.learn(2048, 1.0)
    assert deadline.seconds([131072]) == 3600.0


def test_five_times_the_slowest_document_is_given_and_a_minute_at_least() -> None:
    deadline = Deadline(None)
    deadline.learn(128, 3.0)
    assert deadline.seconds([128, 128]) == 120.0
    deadline.learn(128, 30.0)
    deadline.learn(128, 20.0)
    assert deadline.seconds([128]) == 150.0


def test_what_losses_take_says_nothing_of_gradients() -> None:
    deadline = Deadline(None)
    deadline.learn(128, 30.0)
    assert deadline.seconds([128], with_gradient=True) == 3600.0
    deadline.learn(128, 100.0, with_gradient=True)
    assert (deadline.seconds([128]), deadline.seconds([128], with_gradient=True)) == (150.0, 500.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_limit_that_is_not_above_zero_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"--document-timeout must be above 0 seconds, got (0|-1|nan)\. Leave it away"):
        Deadline(seconds)
