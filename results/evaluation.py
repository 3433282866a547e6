"""What an evaluation measures: the rows of its tables, and means of them; sums and counts travel."""

from dataclasses import dataclass

import pandas as pd

SCORES, TEXT_LOSSES, RETENTION, HARNESS = "scores", "text_losses", "retention", "harness"
"""Names of the files of `SampleScore`, `TextLoss`, `Retention` and `HarnessScore`."""
CONTENDERS = "contenders.json"
"""File with the factors of every contender, by name, as `RescaleFactors.to_json` writes them."""
BEYOND = "*"
"""Marks a length beyond the target of a contender's factors."""


@dataclass(frozen=True, kw_only=True)
class SampleScore:
    """What one contender answered to one sample, and how good that was."""

    contender: str
    """Name of the factors, as their user knows them."""
    candidate: str
    """Content key of the factors, see `results.measurement.candidate_key`."""
    task: str
    """Name of the task."""
    sample: str
    """Id of the sample, unique within its task and length."""
    length: int
    """Tokens of prompt and answer together."""
    depth: float | None
    """Where the needle lies, 0..1; None where there is none."""
    score: float | None
    """The task's own metric, 0..1; None where the model's logits were no numbers."""
    text: str
    """What was generated."""
    num_generated: int
    """Tokens that were generated."""
    seconds: float
    """Wall time of the sample; a batch's is shared evenly."""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells it from every other score of an evaluation; two contenders may have the same factors."""
        return self.contender, self.task, self.length, self.sample


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """What one contender lost on one text, read in windows of one length."""

    contender: str
    """Name of the factors, as their user knows them."""
    candidate: str
    """Content key of the factors."""
    form: str
    """How windows are laid and averaged: sliding, longlora or temp-lora."""
    length: int
    """Tokens of a window."""
    stride: int
    """Tokens from one window to the next."""
    text: str
    """Id of the text."""
    num_text_tokens: int
    """Tokens of the text."""
    sum_nll: float | None
    """Negative log-likelihood over all scored tokens, nats; None where it is not finite."""
    num_tokens: int
    """Tokens scored, each as often as it was."""
    weighted_loss: float | None
    """Sum over windows of what the form averages (mean loss, in temp-lora perplexity) times the window's weight; None
    where it is not finite."""
    weight: float
    """Sum of the windows' weights."""
    first_contexts: list[int]
    """Fewest tokens seen before a token of each bucket."""
    last_contexts: list[int]
    """Most tokens seen, likewise."""
    bucket_sums: list[float | None]
    """Negative log-likelihood of each bucket, nats; None where it is not finite."""
    bucket_counts: list[int]
    """Tokens of each bucket."""
    seconds: float
    """Wall time; about 0 where another contender's figure holds for this one too, as inside the original window."""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells it from every other row of an evaluation."""
        return self.contender, self.form, self.length, self.text


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How far one contender moves the model's logits on one text inside the original window."""

    contender: str
    """Name of the factors, as their user knows them."""
    candidate: str
    """Content key of the factors."""
    serving: str
    """switched: as Ropewalk and engines with both lists serve; pinned: the long factors at every length."""
    length: int
    """Tokens read."""
    text: str
    """Id of the text."""
    largest_difference: float | None
    """Between the two logits of any token at any position; None where one is no number."""
    sum_divergence: float | None
    """Kullback-Leibler divergence from the original model's distribution, KL(original || contender), summed over
    positions, nats; None where it is not finite."""
    num_same_top: int
    """Positions at which the likeliest token is the same."""
    num_positions: int
    """Positions compared."""
    seconds: float
    """Wall time."""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells it from every other row of an evaluation."""
        return self.contender, self.serving, self.length, self.text


@dataclass(frozen=True, kw_only=True)
class HarnessScore:
    """What lm-evaluation-harness gave one contender for one metric of one task."""

    contender: str
    """Name of the factors, as their user knows them."""
    candidate: str
    """Content key of the factors."""
    task: str
    """The harness's name of the task."""
    version: str
    """Version of the task."""
    metric: str
    """With its filter, as the harness names both."""
    value: float | None
    """The metric; None where the harness has none."""
    stderr: float | None
    """Standard error, where the harness gives one."""
    num_samples: int
    """Samples measured."""
    seconds: float
    """Wall time of the task."""

    @property
    def key(self) -> tuple[str, str]:
        """What tells a task's rows from those of every other."""
        return self.contender, self.task


def mean_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return sum, count and mean of the scores of each contender, task and length.

    Args:
        scores: One row each, the fields of `SampleScore` as columns.

    Returns:
        Columns contender, task, length, sum, count, mean; contenders and tasks in the order of their first score. Sum
        and mean are NaN where an answer has no score.
    """
    groups = scores.assign(score=scores["score"].astype(float)).groupby(["contender", "task", "length"], sort=False)
    means = groups["score"].agg([_sum, "size"]).reset_index()
    means = means.rename(columns={"_sum": "sum", "size": "count"})
    return means.assign(mean=means["sum"] / means["count"])


def _sum(scores: "pd.Series[float]") -> float:
    return float(scores.sum(skipna=False))
