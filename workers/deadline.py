"""Deadline: how long a worker may be silent over a task before it is taken to hang."""

from collections.abc import Sequence

FIRST_SECONDS = 3600.0
"""Limit per document of a length that nothing is known of yet."""
LEAST_SECONDS = 60.0
"""Limit that a measured one never falls below: loading kernels takes some seconds."""
SLACK = 5.0
"""How much longer than the slowest document so far one may take."""


class Deadline:
    """Time limits for tasks: the user's for each document, or learnt from the documents that are finished.

    What is learnt holds for one length only: a document of 16 times the length may take 256 times as long. It holds
    for losses or for gradients, which take several times as long.
    """

    def __init__(self, document_timeout: float | None) -> None:
        """Take the user's limit.

        Args:
            document_timeout: Seconds per document; None for a learnt one.

        Raises:
            ValueError: The limit is not above 0.
        """
        if document_timeout is not None and not document_timeout > 0:
            raise ValueError(
                f"--document-timeout must be above 0 seconds, got {document_timeout:g}. Leave it away for a learnt one."
            )
        self._document_timeout = document_timeout
        self._slowest: dict[tuple[int, bool], float] = {}

    def learn(self, length: int, seconds: float, *, with_gradient: bool = False) -> None:
        """Remember how long a document took.

        Args:
            length: Its tokens.
            seconds: Wall time in its worker.
            with_gradient: Whether that was for the loss and its gradient.
        """
        kind = length, with_gradient
        self._slowest[kind] = max(seconds, self._slowest.get(kind, 0.0))

    def seconds(self, lengths: Sequence[int], *, with_gradient: bool = False) -> float:
        """Return how long a task may take.

        Args:
            lengths: Tokens of each of its documents.
            with_gradient: Whether it asks for gradients.

        Returns:
            Seconds since its worker began with it.
        """
        return sum(self._document_seconds((length, with_gradient)) for length in lengths)

    def _document_seconds(self, kind: tuple[int, bool]) -> float:
        if self._document_timeout is not None:
            return self._document_timeout
        if kind not in self._slowest:
            return FIRST_SECONDS
        return max(LEAST_SECONDS, SLACK * self._slowest[kind])
