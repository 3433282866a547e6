"""Objectives: from measurements to the numbers that a candidate is chosen by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from needles.needle import FIRST_VALUE, LAST_VALUE
from results.measurement import Measurement, mean_loss

OBJECTIVES = ("long", "short")
"""Names of the objectives: the target length, and what is lost at the original one."""

Aggregate = Literal["mean", "capped"]
"""The paper's mean over documents, or the mean of losses that count as no more than a guess."""


GUESS = math.log(LAST_VALUE - FIRST_VALUE + 1)
"""What a needle's value costs of which the model knows only that it has seven digits, nats."""


def capped_loss(measurements: Sequence[Measurement], *, num_needles: int = 1) -> float:
    """Return the mean over documents of each document's loss, or that of guessing where it is larger.

    Heavy tails come from needles that are lost. How far beyond a guess the loss of such a needle lies says how sure
    the model is of something else, not how near the needle is, but it decides the mean of few documents.

    Args:
        measurements: One candidate's, one per document.
        num_needles: Values that each document asks for.

    Returns:
        Nats per token; NaN if any document failed.
    """
    losses = [mean_loss([entry]) for entry in measurements]
    if any(math.isnan(loss) for loss in losses):
        return math.nan
    capped = (min(loss, _guess(entry, num_needles)) for loss, entry in zip(losses, measurements, strict=True))
    return math.fsum(capped) / len(losses)


def _guess(measurement: Measurement, num_needles: int) -> float:
    return GUESS * num_needles / measurement.num_tokens


Losses: TypeAlias = tuple[float, ...]
"""One loss per objective, nats per token."""


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """What a candidate is chosen by."""

    names: tuple[str, ...] = ("long",)
    """`long`: the needle loss at the target length. `short`: what the factors cost at the original length, for
    engines that cannot switch."""
    aggregate: Aggregate = "mean"
    """How the losses of documents become one."""
    original: frozenset[str] = frozenset()
    """Ids of the documents of the original length; none without the objective `short`."""
    unscaled: float = 0.0
    """The unscaled model's loss on them, nats per token."""
    num_needles: int = 1
    """Values that each document of the target length asks for; one of the original length asks for one."""

    @property
    def directions(self) -> tuple[str, ...]:
        """Optuna's directions: all are minimised."""
        return ("minimize",) * len(self.names)

    def relative_to(self, measurements: Sequence[Measurement]) -> "Objectives":
        """Return the same with what the unscaled model has on the documents of the original length.

        Args:
            measurements: The unscaled model's.

        Raises:
            ValueError: It could not be measured there.
        """
        unscaled = self._whole(measurements, 1)
        if math.isnan(unscaled):
            reason = next(entry.failure for entry in measurements if entry.failure is not None)
            raise ValueError(
                f"the objective short must be measurable, got a failure of the unscaled model on {len(measurements)} "
                f"documents of the original length: {reason}. Mend its cause, or use --objectives long."
            )
        return replace(self, unscaled=unscaled)

    def losses(self, measurements: Sequence[Measurement]) -> Losses:
        """Return a candidate's losses by objective; NaN if a document failed.

        Args:
            measurements: All of the candidate's. Where none is of the original length, as on validation documents,
                there is no loss of it.
        """
        long = self._whole([entry for entry in measurements if entry.document not in self.original], self.num_needles)
        short = [entry for entry in measurements if entry.document in self.original]
        return (long, self._whole(short, 1) - self.unscaled) if short else (long,)

    def gradient(self, measurements: Sequence[Measurement]) -> list[float] | None:
        """Return the gradient of the sum of a candidate's losses; None where it was not measured with one.

        Args:
            measurements: All of the candidate's.

        Returns:
            By log lambda of every pair, then by the attention temperature; nats per token.
        """
        if any(entry.gradient is None for entry in measurements):
            return None
        parts = [
            [entry for entry in measurements if (entry.document in self.original) is short] for short in (False, True)
        ]
        means = [np.mean([self._slope(entry) for entry in part], axis=0) for part in parts if part]
        gradient: list[float] = np.sum(means, axis=0).tolist()
        return gradient

    def _whole(self, measurements: Sequence[Measurement], num_needles: int) -> float:
        if self.aggregate == "capped":
            return capped_loss(measurements, num_needles=num_needles)
        return mean_loss(measurements)

    def _slope(self, measurement: Measurement) -> npt.NDArray[np.float64]:
        num_needles = 1 if measurement.document in self.original else self.num_needles
        is_flat = self.aggregate == "capped" and mean_loss([measurement]) >= _guess(measurement, num_needles)
        return np.array(measurement.gradient) * (not is_flat)


def perplexities(losses: Losses) -> list[float]:
    """Return losses as Optuna's values: perplexities, or their ratio to the unscaled model's; infinite at overflow."""
    with np.errstate(over="ignore"):
        return [float(value) for value in np.exp(losses)]


def pareto_front(losses: Sequence[Losses]) -> list[int]:
    """Return the places of those that no other is at least as good as in every objective and better in one.

    Args:
        losses: Lower is better; what has a NaN is on no front.

    Returns:
        Places by ascending first loss; of equals the first.
    """
    order = sorted((loss, place) for place, loss in enumerate(losses) if not any(map(math.isnan, loss)))
    front: list[int] = []
    for loss, place in order:
        if not any(all(a <= b for a, b in zip(losses[other], loss, strict=True)) for other in front):
            front.append(place)
    return front


def knee(losses: Sequence[Losses]) -> int:
    """Return the place of the knee of a front of two objectives: the point farthest below the line of its ends.

    Both objectives are scaled to their range on the front first. Where the front has no point below the line, the
    smallest sum of losses is taken, since both are nats per token.

    Args:
        losses: A front, by ascending first loss; at least one, two numbers each.

    Source: J. Branke et al., Finding Knees in Multi-objective Optimization, PPSN 2004.
    """
    points = np.array(losses)
    ranges = np.ptp(points, axis=0)
    if len(points) > 2 and (ranges > 0).all():
        below_line = 1.0 - ((points - points.min(axis=0)) / ranges).sum(axis=1)
        if below_line.max() > 0:
            return int(below_line.argmax())
    return int(points.sum(axis=1).argmin())
