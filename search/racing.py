"""Racing: a candidate that its first documents show to be no better than another need not read the rest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

FEWEST_DOCUMENTS = 5
"""Documents of a candidate below which no test could save one."""


@dataclass(frozen=True, kw_only=True)
class Racing:
    """The rule by which candidates are dropped: a paired one-sided signed-rank test, document by document.

    It is looked at after 4, 8, 16, ... documents, so that the number of looks, and with it the chance to drop a good
    candidate by accident, stays small. The losses are heavy-tailed: a few lost needles decide the mean. A candidate is
    therefore only dropped where its mean is the worse one too; that it wins some of the lost needles back and is a
    little worse elsewhere must not cost it its place.

    Source: F. Wilcoxon, Biometrics Bulletin 1(6), 1945; Optuna's WilcoxonPruner tests the same, but reads its
    reference from the storage, which has no place for the documents that two generations share.
    """

    p_value: float = 0.1
    """Under what p-value of one look a candidate is dropped. Over all looks about a third of those are that are no
    worse than the best, which costs nothing; the best itself is kept in 93 to 95 of 100 races of equals."""
    first_look: int = 4
    """Documents before the first decision."""

    def __post_init__(self) -> None:
        if not 0 < self.p_value < 1:
            raise ValueError(f"race.p_value must lie between 0 and 1, got {self.p_value:g}. Correct it.")
        if self.first_look < FEWEST_DOCUMENTS - 1:
            raise ValueError(
                f"race.first_look must be at least {FEWEST_DOCUMENTS - 1} documents, got {self.first_look}: fewer "
                "prove nothing. Raise it."
            )

    def looks(self, num_documents: int) -> list[int]:
        """Return after how many documents candidates are looked at, the last being all of them.

        Args:
            num_documents: Documents of a candidate that is not dropped.
        """
        looks = []
        look = self.first_look
        while look < num_documents:
            looks.append(look)
            look *= 2
        return [*looks, num_documents]

    def is_worse(self, losses: Sequence[float], reference: Sequence[float]) -> bool:
        """Return whether a candidate is clearly worse than another on the same documents.

        Args:
            losses: Its losses, nats per token; NaN for a failure, with which it cannot win.
            reference: The other's, in the same order; all finite.
        """
        if any(math.isnan(loss) for loss in losses):
            return True
        differences = np.subtract(losses, reference)
        if differences.mean() <= 0:
            return False
        p_value: float = wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue
        return p_value < self.p_value
