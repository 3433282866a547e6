"""What the ledger costs: milliseconds a trial in each storage, beside the scoring time that it may not disturb.

A trial is asked for, annotated and told, at 64 frequency pairs, in a study that grows to the paper's 1,344 candidates.
The bound: at most 5 % of the time in which 64 workers at 1 s a document measure a candidate of 10 documents (156 ms).

    python -m tests.benchmarks.ledger [--storage postgresql+psycopg://...]
"""

import argparse
import tempfile
import time
from pathlib import Path

from results.measurement import Measurement, candidate_key, perplexity
from search.study import Trials, Verdict, open_storage, open_study
from tests.benchmarks.utilisation import make_sampler

NUM_TRIALS = 1344
CANDIDATE_SECONDS = 10 * 1.0 / 64
BOUND = 0.05


def main() -> None:
    """Measure the storages and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", action="append", default=[], help="further storage URL; the study stays there")
    parser.add_argument("--trials", type=int, default=NUM_TRIALS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for url in [None, f"sqlite:///{folder}/study.db", *options.storage]:
            report(url, Path(folder), options.trials)


def report(url: str | None, folder: Path, num_trials: int) -> None:
    """Print what the storage costs over the whole study and at its end."""
    name = "journal" if url is None else url.partition(":")[0]
    study = open_study(f"ledger {time.time_ns()}", storage=open_storage(url, run_dir=folder), identity={}, note="")
    trials = Trials(study)
    sampler = make_sampler(NUM_TRIALS, 64, "generational")
    with_sampler, alone = [], []
    for _ in range(num_trials):
        begun = time.perf_counter()
        sampler.propose(trials.searched(sampler))  # without the ledger; asking again gives the same
        proposed = time.perf_counter()
        asked = trials.ask_candidate(sampler)
        found = measurements(candidate_key(asked.factors), asked.factors.values[-1])
        trials.tell(asked.trial, found, Verdict([perplexity(found)], len(found)))
        with_sampler.append(time.perf_counter() - proposed)
        alone.append(with_sampler[-1] - (proposed - begun))
    mean, last = sum(alone) / num_trials, sum(alone[-100:]) / min(100, num_trials)
    share = mean / CANDIDATE_SECONDS
    print(
        f"{name:22} {mean * 1e3:6.2f} ms a trial ({last * 1e3:.2f} ms at the end; with the sampler "
        f"{sum(with_sampler) / num_trials * 1e3:.2f} ms): {share:.1%} of {CANDIDATE_SECONDS * 1e3:.0f} ms, "
        f"{'within' if share <= BOUND else 'ABOVE'} the bound of {BOUND:.0%}"
    )


def measurements(candidate: str, value: float) -> list[Measurement]:
    """Return ten documents' measurements."""
    return [
        Measurement(
            candidate=candidate,
            document=f"document-{number}",
            split="search",
            depth=number / 10,
            sum_nll=value + number / 10,
            num_tokens=10,
            seconds=1.0,
        )
        for number in range(10)
    ]


if __name__ == "__main__":
    main()
