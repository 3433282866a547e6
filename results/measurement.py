"""Measurement: what one candidate scored on one document, and the means over documents that are taken last."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rope.factors import RescaleFactors


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The loss of one candidate on one document's answer, as a sum and a count; or a failure with its reason.

    A failure has a NaN sum and no tokens, so that no mean can pass over it.
    """

    candidate: str
    """Content key of the factors, see `candidate_key`."""
    document: str
    """Id of the document."""
    split: str
    """What the document is for: search, validation, heldout or original."""
    depth: float
    """Where the needle lies, as a fraction of the haystack; the mean where there are several."""
    sum_nll: float
    """Negative log-likelihood summed over the answer's tokens, nats; NaN for a failure."""
    num_tokens: int
    """Tokens of the answer; 0 for a failure."""
    seconds: float
    """Wall time spent on the document; a batch's time is shared evenly among its documents."""
    failure: str | None = None
    """Why there is no loss, in one line; None where there is one."""
    gradient: tuple[float, ...] | None = None
    """Derivative of this document's mean loss by the logarithm of each rescale factor, then by the attention
    temperature, nats per token; rotary_dim / 2 + 1 finite numbers. None where it was not asked for, or failed."""
    flops: float | None = None
    """Floating point operations that this document's score needed; None where nobody counted them."""
    peak_bytes: int | None = None
    """Most memory that its worker had in use until then: on its accelerators, else in the process; None if unknown."""

    def __post_init__(self) -> None:
        """Refuse a number that is neither a loss nor a failure."""
        if self.failure is None and not (math.isfinite(self.sum_nll) and self.num_tokens > 0):
            raise ValueError(
                f"a measurement must have a finite sum_nll and at least one token, got {self.sum_nll} over "
                f"{self.num_tokens} tokens. Give the reason as its failure."
            )
        if self.failure is not None and not (math.isnan(self.sum_nll) and self.num_tokens == 0):
            raise ValueError(
                f"a failed measurement must have a NaN sum_nll and no tokens, got {self.sum_nll} over "
                f"{self.num_tokens} tokens. Drop the numbers or the failure."
            )
        if self.failure is not None and self.gradient is not None:
            raise ValueError(
                f"a failed measurement must have no gradient, got {len(self.gradient)} numbers. Drop one of the two."
            )
        if self.gradient is not None and not all(map(math.isfinite, self.gradient)):
            raise ValueError(
                f"a gradient must hold finite numbers, got {self.gradient}. Give the reason as its failure."
            )


def candidate_key(factors: RescaleFactors) -> str:
    """Return a key of what the factors do to a model: equal keys, equal logits.

    Method, critical dimension, target length and provenance are left out: they change nothing that a model computes.

    Args:
        factors: Rescale factors.

    Returns:
        16 hexadecimal digits, the same in every process.
    """
    content: list[float | str] = [
        factors.rotary_dim,
        factors.base,
        factors.attention_temperature,
        factors.num_start_tokens,
        *factors.values,
    ]
    if factors.short is not None:
        content += [candidate_key(factors.short)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def mean_loss(measurements: Sequence[Measurement]) -> float:
    """Return the mean over documents of each document's mean loss, so that a long answer weighs no more than a short.

    Args:
        measurements: One candidate's measurements, one per document.

    Returns:
        Nats per token; NaN if any document failed.

    Raises:
        ValueError: There is no measurement.
    """
    if not measurements:
        raise ValueError("a mean loss must be taken over at least one measurement, got none. Measure a document first.")
    return math.fsum(_document_loss(measurement) for measurement in measurements) / len(measurements)


def perplexity(measurements: Sequence[Measurement]) -> float:
    """Return the needle perplexity, exp(mean over documents of each document's mean loss). Lower is better.

    Args:
        measurements: One candidate's measurements, one per document.

    Returns:
        At least 1; infinite where the exponential overflows; NaN if any document failed.

    Raises:
        ValueError: There is no measurement.

    Source: LongRoPE2, arXiv:2502.20082, needle-driven perplexity; the mean is its published code's.
    """
    with np.errstate(over="ignore"):
        return float(np.exp(mean_loss(measurements)))


def _document_loss(measurement: Measurement) -> float:
    return math.nan if measurement.failure is not None else measurement.sum_nll / measurement.num_tokens
