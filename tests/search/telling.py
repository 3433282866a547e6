"""Tells a trial a loss without a model."""

from math import nan

from results.measurement import Measurement, candidate_key
from search.objectives import Losses, perplexities
from search.study import Asked, Trials, Verdict


def tell(
    trials: Trials,
    asked: Asked,
    loss: float | Losses | None,
    *,
    is_dropped: bool = False,
    gradient: list[float] | None = None,
) -> None:
    """Close a trial with a loss, or one per objective, nats a token; or as failed for None.

    Args:
        trials: The study's.
        asked: What to close.
        loss: At the target length, or by objective.
        is_dropped: Whether it lost a race, so that the loss is an estimate.
        gradient: Of the loss, by log lambda of every pair, then by the attention temperature.
    """
    losses = (nan,) if loss is None else loss if isinstance(loss, tuple) else (loss,)
    measurement = Measurement(
        candidate=candidate_key(asked.factors),
        document="a",
        split="search",
        depth=0.5,
        sum_nll=losses[0],
        num_tokens=0 if loss is None else 1,
        seconds=0.0,
        failure="cannot read a" if loss is None else None,
    )
    trials.tell(asked.trial, [measurement], Verdict(perplexities(losses), 1, is_dropped, gradient))
