"""What a model made of texts before it was trained, kept so that the trained one is compared with it.

Shapes: T tokens of a text, P positions of all texts, K positions of one, N hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rope.factors import RescaleFactors
from workers.model import LoadedModel
from workers.perplexity import checked_ids, hidden_states, logits_of, num_at_once

MOST_NUMBERS = 2**26
"""Log probabilities kept of all texts together: 256 MB; a larger vocabulary is compared at fewer positions."""

LogProbabilities = npt.NDArray[np.float32]


class Divergence(NamedTuple):
    """How far a model moved; sums over positions, means are taken last."""

    sum_divergence: float
    """KL(before || after), nats."""
    num_same_top: int
    """Positions at which the likeliest token is the same."""
    num_positions: int
    """Positions compared."""


@torch.inference_mode()
def log_probabilities(
    loaded: LoadedModel, texts: Sequence[npt.NDArray[np.integer]], factors: RescaleFactors | None
) -> LogProbabilities:
    """Return the logarithms of a model's next-token probabilities, at positions spread evenly over texts.

    Args:
        loaded: The model; restored afterwards.
        texts: Of one length each, at least 2 tokens; shapes (T,).
        factors: Installed while they are read; None for the model as it was loaded.

    Returns:
        Shape (P, V). The positions depend on lengths and vocabulary alone.

    Raises:
        ValueError: A text holds a token that the model does not know, or the factors are for another model.
    """
    vocabulary_size: int = loaded.model.config.get_text_config().vocab_size
    num_each = max(1, MOST_NUMBERS // (vocabulary_size * len(texts)))
    found: list[LogProbabilities] = []
    with loaded.patch:
        if factors is not None:
            loaded.patch.install(factors)
        for token_ids in texts:
            ids_T = checked_ids(loaded, token_ids)
            positions_K = np.unique(np.linspace(0, len(ids_T) - 1, min(num_each, len(ids_T))).round().astype(np.int64))
            found += _at(loaded, ids_T, torch.from_numpy(positions_K))
    return np.concatenate(found)


def divergence(before: LogProbabilities, after: LogProbabilities) -> Divergence:
    """Return how far one model's probabilities are from another's on the same positions.

    Args:
        before, after: Logarithms, shape (P, V).
    """
    total = 0.0
    for log_p_V, log_q_V in zip(before.astype(np.float64), after.astype(np.float64), strict=True):
        p_V = np.exp(log_p_V)
        # A token that the first excludes adds nothing, whatever the second says
        total += float(np.sum(p_V[p_V > 0] * (log_p_V - log_q_V)[p_V > 0]))
    num_same = int(np.count_nonzero(before.argmax(axis=1) == after.argmax(axis=1)))
    return Divergence(total, num_same, len(before))


def _at(loaded: LoadedModel, ids_T: Tensor, positions_K: Tensor) -> list[LogProbabilities]:
    input_ids_1T = ids_T.to(loaded.device)[None]
    kind, hidden_1TN = hidden_states(loaded, input_ids_1T, len(ids_T))
    return [
        logits_of(loaded, kind, hidden_1TN[:, some.to(hidden_1TN.device)], input_ids_1T)
        .float()
        .log_softmax(-1)
        .cpu()
        .numpy()
        for some in torch.split(positions_K, num_at_once(loaded))
    ]
