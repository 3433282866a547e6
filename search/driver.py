"""The loop that keeps a scorer busy: (candidate, documents) tasks out, measurements back in completion order."""

from collections import deque
from collections.abc import Iterator, Sequence

from results.measurement import Measurement, candidate_key
from rope.factors import RescaleFactors
from workers.scorer import Scorer, Task


def measure(
    scorer: Scorer, candidates: Sequence[RescaleFactors], batches: Sequence[tuple[str, ...]]
) -> Iterator[tuple[RescaleFactors, list[Measurement]]]:
    """Yield each candidate with its measurements as soon as its last document is in.

    At most `scorer.capacity` tasks are in flight. A failed document fails its candidate, never the loop.

    Args:
        scorer: Where tasks are measured.
        candidates: Factors; equal ones (by `candidate_key`) are measured once.
        batches: Ids of the documents of each forward; every candidate is measured on all of them.

    Yields:
        Candidates in the order in which they are complete, the measurements in the order of the batches.
    """
    by_key = {candidate_key(factors): factors for factors in candidates}
    order = {document: place for place, document in enumerate(document for batch in batches for document in batch)}
    received: dict[str, list[Measurement]] = {key: [] for key in by_key}
    waiting = deque(Task(factors, batch) for factors in by_key.values() for batch in batches)
    num_in_flight = 0
    while waiting or num_in_flight:
        while waiting and num_in_flight < scorer.capacity:
            scorer.submit(waiting.popleft())
            num_in_flight += 1
        measurements = scorer.collect()
        num_in_flight -= 1
        key = measurements[0].candidate  # a task is one candidate's
        received[key] += measurements
        if len(received[key]) == len(order):
            yield by_key[key], sorted(received.pop(key), key=lambda measurement: order[measurement.document])
