"""How many documents go through the model at once: as many as make each of them faster."""

from collections.abc import Callable

MIN_GAIN = 0.05
"""Share of the time per document that twice as many must save."""
MOST_DOCUMENTS = 64
"""Documents of the largest batch."""
ENOUGH_SECONDS = 1.0
"""Time of a document that keeps a device busy by itself: no larger batch is tried."""


def fastest_batch_size(seconds_of: Callable[[int], float], *, most: int = MOST_DOCUMENTS) -> int:
    """Return the smallest batch size that is about as fast per document as any.

    Sizes are doubled while it pays; a size that does not fit ends it, and so does a document that takes long alone.

    Args:
        seconds_of: Time of a forward over so many documents; raises MemoryError where they do not fit.
        most: Largest size to try.

    Returns:
        A power of two, at least 1.
    """
    size = 1
    try:
        best = seconds_of(1)
    except MemoryError:  # a failed measurement is to say so, and how short it was
        return 1
    while 2 * size <= most and best < ENOUGH_SECONDS:
        try:
            seconds = seconds_of(2 * size) / (2 * size)
        except MemoryError:
            break
        if seconds > (1 - MIN_GAIN) * best:
            break
        size, best = 2 * size, seconds
    return size
