"""Break index: the critical dimension that a bare list of factors was made with, read from the list alone."""

import math
from collections.abc import Sequence

FEWEST_BELOW = 3
"""Smallest index that is told: two pairs strictly between the first and it must meet the law. On the paper's grid of
0.01 a single one does so by chance: 1, 1.1, 1.21."""

TOLERANCE = 1e-6
"""Largest difference of a log factor from the law. Lists in float32 are off by 1.2e-7 at most, those of six decimals by
1e-6 (half a unit for the pair itself, half for the critical one); what is rounded to two decimals is not told."""


def break_index(values: Sequence[float], *, tolerance: float = TOLERANCE) -> int | None:
    """Return the pair up to which factors are one change of base, and from which on they are free.

    LongRoPE2 fills the pairs below the critical dimension r by lambda_r^(i / r), so that log lambda is a straight line
    through 0 there. The break index is the largest r at which that holds for all pairs 0 .. r, with lambda_r above 1.

    None where no such line ends inside the list: one change of base for all pairs (NTK, an adjusted base; a list whose
    critical dimension is its last pair looks the same), a left part of ones, which changes nothing (YaRN, Llama-3, no
    scaling; their ramp is no critical dimension), a list that does not begin with 1 (Position Interpolation, LongRoPE
    as Phi-3 has it), a line too short to be no accident, or one lost by rounding.

    Args:
        values: One factor per frequency pair, fastest pair first; above 0.
        tolerance: Largest difference of log lambda from the line.

    Returns:
        Index of a frequency pair, from 0, in 3 .. len(values) - 2; or None.

    Example:
        The published list for LLaMA3-8B gives 33; here pair 3 of 6 is the last on the line.

        >>> break_index([1.0, 2.0, 4.0, 8.0, 9.0, 10.0])
        3

    Source: LongRoPE2, arXiv:2502.20082, algorithm 2, lines 7 and 8.
    """
    logs = [math.log(value) for value in values]
    if any(logs) and _is_line(logs, len(logs) - 1, tolerance):
        return None
    for last in range(len(logs) - 2, FEWEST_BELOW - 1, -1):
        # Above the tolerance at the first step already, or a left part of ones would pass for a line
        if logs[last] / last > tolerance and _is_line(logs, last, tolerance):
            return last
    return None


def _is_line(logs: Sequence[float], last: int, tolerance: float) -> bool:
    return all(abs(log - logs[last] * pair / last) <= tolerance for pair, log in enumerate(logs[:last]))
