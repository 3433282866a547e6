"""A pack: documents end to end in a training sequence of one length, and who may attend to whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Window = Literal["short", "long"]
"""Whose rotation a pack is read with: short, the original one; long, the rescaled one."""

NOT_SCORED = -100
"""The label of a token whose prediction is not part of the loss; transformers' and PyTorch's own value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """A training sequence of num_tokens tokens.

    A label stands at its own token, as transformers has it: the loss shifts, so that labels[t] is what the model
    should predict at t - 1.
    """

    window: Window
    token_ids: npt.NDArray[np.int64]
    """Shape (num_tokens,)."""
    position_ids: npt.NDArray[np.int64]
    """Shape (num_tokens,); counts from 0 in every stretch that attends to itself alone."""
    starts: npt.NDArray[np.int32]
    """Where those stretches begin, and num_tokens at the end; shape (num_stretches + 1,), increasing from 0."""
    labels: npt.NDArray[np.int64]
    """Shape (num_tokens,); `NOT_SCORED` where a stretch begins."""
    documents: tuple[int, ...] = ()
    """Indices of the documents in it, in their order."""

    @property
    def num_scored(self) -> int:
        """Tokens that the loss is taken over."""
        return int(np.count_nonzero(self.labels != NOT_SCORED))


class SpecialTokens(NamedTuple):
    """What a document begins and ends with; None where the tokenizer has no such token."""

    beginning: int | None
    end: int | None

    @property
    def num_tokens(self) -> int:
        """How many a whole document gets."""
        return sum(token is not None for token in self)

    def around(self, token_ids: npt.NDArray[np.int32], *, num_tokens: int) -> npt.NDArray[np.int64]:
        """Return a document between its special tokens, cut to a length; a document that is cut has no end.

        Args:
            token_ids: The document, shape (any,).
            num_tokens: Most tokens wanted.

        Returns:
            Shape (at most num_tokens,).
        """
        before = [] if self.beginning is None else [self.beginning]
        after = [] if self.end is None else [self.end]
        return np.concatenate([before, token_ids[:num_tokens], after])[:num_tokens].astype(np.int64)


def pack(
    pieces: Sequence[npt.NDArray[np.int64]], *, window: Window, attend_across: bool, documents: tuple[int, ...] = ()
) -> Pack:
    """Return pieces end to end as one pack.

    Args:
        pieces: Documents with their special tokens, none empty, each of shape (its tokens,).
        window: Whose rotation the pack is read with.
        attend_across: Whether attention and positions go on from one document to the next.
        documents: Indices of the pieces' documents.
    """
    token_ids = np.concatenate(pieces)
    lengths = [len(token_ids)] if attend_across else [len(piece) for piece in pieces]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    labels = token_ids.copy()
    labels[starts[:-1]] = NOT_SCORED
    return Pack(
        window=window,
        token_ids=token_ids,
        position_ids=np.arange(len(token_ids)) - np.repeat(starts[:-1], lengths),
        starts=starts.astype(np.int32),
        labels=labels,
        documents=documents,
    )
