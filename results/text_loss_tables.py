"""Perplexities, losses by context, the power law of context, and retention, from the rows of `results.evaluation`."""

import numpy as np
import pandas as pd

from results.power_law import MIN_POINTS, Estimate, fit_power_law

AVERAGED_AS_PERPLEXITY = "temp-lora"
"""The form whose windows' perplexities are averaged; of all others their losses are."""
FITTED_FORM = "sliding"
"""The form that the power law is fitted to: it scores every token once."""
MIN_BUCKET_TOKENS = 100
"""Scored tokens of a bucket that the power law is fitted to; of fewer the mean loss is a matter of chance."""

_PARAMETERS = ("alpha", "beta", "gamma")


def perplexities(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the perplexity of each contender, form and length over all texts.

    The sums of all texts' windows are divided by their weights, so that a text counts by its windows.

    Args:
        frame: One row each, the fields of `TextLoss` as columns.

    Returns:
        Columns contender, form, length, perplexity, num_tokens (scored, each as often as it was), num_texts; in the
        order of the first row of each. The perplexity is NaN where a loss of any text is not finite, or its
        exponential is not.

    Source: the forms are those of `workers.perplexity.text_perplexity`.
    """
    keys = ["contender", "form", "length"]
    sums = frame.assign(weighted_loss=frame["weighted_loss"].astype(float)).groupby(keys, sort=False)
    found = sums.agg(
        weighted_loss=("weighted_loss", _sum),
        weight=("weight", "sum"),
        num_tokens=("num_tokens", "sum"),
        num_texts=("text", "size"),
    ).reset_index()
    mean = (found["weighted_loss"] / found["weight"]).to_numpy(dtype=np.float64)
    with np.errstate(over="ignore"):
        figure = np.where(found["form"] == AVERAGED_AS_PERPLEXITY, mean, np.exp(mean))
    found["perplexity"] = np.where(np.isfinite(figure), figure, np.nan)
    return found[[*keys, "perplexity", "num_tokens", "num_texts"]]


def by_context(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean loss by how many tokens the model saw before the one it predicts.

    Args:
        frame: As that of `perplexities`.

    Returns:
        Columns contender, form, length, first_context, last_context (tokens seen, at least and at most),
        middle_context (their geometric mean), loss (nats per token, over all texts), num_tokens. Contenders, forms and
        lengths in the order of their first row, contexts ascending; a bucket without tokens has no row. The loss is
        NaN where that of any text is not finite.
    """
    keys = ["contender", "form", "length", "first_context", "last_context"]
    names = {
        "first_contexts": "first_context",
        "last_contexts": "last_context",
        "bucket_sums": "sum_nll",
        "bucket_counts": "num_tokens",
    }
    parts = frame[[*keys[:3], *names]].explode(list(names), ignore_index=True).rename(columns=names)
    whole = dict.fromkeys(("first_context", "last_context", "num_tokens"), np.int64)
    parts = parts[parts["num_tokens"].notna()].astype(whole).astype({"sum_nll": float})
    # Sorted by contexts, which texts of unlike length need not fill alike, but not by names
    parts["place"] = parts.groupby(keys[:3], sort=False).ngroup()
    groups = parts.groupby(["place", *keys], sort=True)
    found = groups.agg(sum_nll=("sum_nll", _sum), num_tokens=("num_tokens", "sum")).reset_index()
    found["middle_context"] = np.sqrt(found["first_context"] * found["last_context"].astype(float))
    found["loss"] = found["sum_nll"] / found["num_tokens"]
    return found[[*keys, "middle_context", "loss", "num_tokens"]]


def power_laws(frame: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """Return the power law of context of each contender, fitted to its longest windows of the form `FITTED_FORM`.

    L(c) = (alpha / c)^beta + gamma is fitted to the mean losses of `by_context`, c being the middle of a bucket, all
    buckets with the same weight, those below `MIN_BUCKET_TOKENS` tokens left out. Within one window length the loss
    by position is what the law is about, and one pass over the texts gives it at every context; means over windows of
    several lengths would mix the contexts inside each. The tokens behind different contexts are not the same ones,
    which the intervals take as errors of the points.

    Args:
        frame: As that of `perplexities`.
        confidence: Of the intervals, between 0 and 1.

    Returns:
        One row per contender: columns contender, length (tokens of a window), alpha, alpha_low, alpha_high, beta,
        beta_low, beta_high, gamma, gamma_low, gamma_high, residual (as `results.power_law.PowerLaw` has them; NaN
        where there is no fit), num_points, reason (why there is no fit, empty where there is one).

    Source: Effective Long-Context Scaling of Foundation Models, arXiv:2309.16039; the buckets are ours.
    """
    contexts = by_context(frame[frame["form"] == FITTED_FORM])
    rows = []
    for contender, own in contexts.groupby("contender", sort=False):
        length = int(own["length"].max())
        points = own[(own["length"] == length) & (own["num_tokens"] >= MIN_BUCKET_TOKENS)]
        rows.append({"contender": contender, "length": length} | _fit(points, confidence))
    columns = ["contender", "length", *(f"{name}{end}" for name in _PARAMETERS for end in ("", "_low", "_high"))]
    return pd.DataFrame(rows, columns=[*columns, "residual", "num_points", "reason"])


def retained(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how far each contender moves the logits inside the original window, by serving and length, over all texts.

    Args:
        frame: One row each, the fields of `Retention` as columns.

    Returns:
        Columns contender, serving, length, largest_difference (between two logits, of all texts), mean_divergence
        (nats per position), same_top (share of positions, 0..1), num_positions, num_texts; in the order of the first
        row of each. Difference and divergence are NaN where those of any text are not finite.
    """
    keys = ["contender", "serving", "length"]
    floats = frame.astype({"largest_difference": float, "sum_divergence": float})
    found = floats.groupby(keys, sort=False).agg(
        largest_difference=("largest_difference", _max),
        sum_divergence=("sum_divergence", _sum),
        num_same_top=("num_same_top", "sum"),
        num_positions=("num_positions", "sum"),
        num_texts=("text", "size"),
    )
    found["mean_divergence"] = found["sum_divergence"] / found["num_positions"]
    found["same_top"] = found["num_same_top"] / found["num_positions"]
    numbers = ["largest_difference", "mean_divergence", "same_top", "num_positions", "num_texts"]
    return found.reset_index()[[*keys, *numbers]]


def _fit(points: pd.DataFrame, confidence: float) -> dict[str, float | str]:
    """Return the columns of one law."""
    if len(points) < MIN_POINTS:
        reason = (
            f"{MIN_POINTS} ranges of context with {MIN_BUCKET_TOKENS} scored tokens are needed, got {len(points)}; "
            "raise --lengths or --num-texts"
        )
        return {"num_points": len(points), "reason": reason}
    if points["loss"].isna().any():
        return {"num_points": len(points), "reason": "a loss is not finite"}
    try:
        law = fit_power_law(points["middle_context"].tolist(), points["loss"].tolist(), confidence=confidence)
    except ValueError as error:
        return {"num_points": len(points), "reason": str(error)}
    if law.alpha.low == 0.0 and np.isinf(law.alpha.high):
        return {"num_points": len(points), "reason": "the losses do not determine it"}
    estimates: dict[str, Estimate] = {name: getattr(law, name) for name in _PARAMETERS}
    found: dict[str, float | str] = {"residual": law.residual, "num_points": len(points), "reason": ""}
    for name, estimate in estimates.items():
        found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return found


def _sum(values: "pd.Series[float]") -> float:
    return float(values.sum(skipna=False))


def _max(values: "pd.Series[float]") -> float:
    return float(values.max(skipna=False))
