"""Tells a trial a loss without a model."""

from math import nan

from results.measurement import Measurement, candidate_key
from search.study import Asked, Trials


def tell(trials: Trials, asked: Asked, loss: float | None) -> None:
    """Close a trial with a loss, nats a token, or as failed for None."""
    measurement = Measurement(
        candidate=candidate_key(asked.factors),
        document="a",
        split="search",
        depth=0.5,
        sum_nll=nan if loss is None else loss,
        num_tokens=0 if loss is None else 1,
        seconds=0.0,
        failure="cannot read a" if loss is None else None,
    )
    trials.tell(asked.trial, [measurement])
