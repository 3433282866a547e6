"""Whether a model can answer several needles at all: in its own window, before any factors are to blame."""

import math
from collections.abc import Sequence

from needles.needle import FIRST_VALUE, LAST_VALUE
from results.measurement import Measurement, mean_loss

MAX_NATS_PER_VALUE = math.log(2)
"""Largest mean loss of a whole value in the own window: above, its seven digits are more often wrong than right."""


def check_own_window(measurements: Sequence[Measurement], *, num_needles: int, length: int) -> None:
    """Refuse a model that does not answer so many needles where it needs no factors.

    A search takes every nat of loss for the factors' fault. Where a model loses them because it was never asked more
    than once, further needles add noise, and documents of several tell candidates apart no better than those of one.

    Args:
        measurements: Of the unscaled model on documents of its original length; at least one.
        num_needles: Needles in each document; above 1.
        length: The original length, tokens.

    Raises:
        ValueError: A document failed, or the mean loss is above ln 2 a value: 0.10 nats a token where each of the seven
            digits is one.
    """
    failure = next((measurement.failure for measurement in measurements if measurement.failure is not None), None)
    if failure is not None:
        raise ValueError(
            f"the model must be measured with {num_needles} needles in its own window of {length} tokens, got no loss: "
            f"{failure}. Find out why first."
        )
    loss = mean_loss(measurements)
    limit = _nats_a_token(measurements, MAX_NATS_PER_VALUE * num_needles)
    if loss > limit:
        raise ValueError(
            f"the model must answer {num_needles} needles in its own window of {length} tokens with a loss of at most "
            f"{limit:.2f} nats a token, got {loss:.2f} "
            f"(guessing has {guessing_loss(measurements, num_needles=num_needles):.2f}). "
            "Use --documents.num-needles 1."
        )


def guessing_loss(measurements: Sequence[Measurement], *, num_needles: int) -> float:
    """Return the mean loss, nats a token, of a model that knows only that a value has seven digits.

    The natural logarithm of 9,000,000 values, shared out over an answer's tokens: 2.29 where each digit is a token,
    5.34 where three tokens hold the seven.

    Args:
        measurements: Any candidate's, none failed; at least one.
        num_needles: Needles in each document.
    """
    return _nats_a_token(measurements, math.log(LAST_VALUE - FIRST_VALUE + 1) * num_needles)


def _nats_a_token(measurements: Sequence[Measurement], nats: float) -> float:
    """Return the mean loss of a model that loses so many nats on each document."""
    return math.fsum(nats / measurement.num_tokens for measurement in measurements) / len(measurements)
