"""Searches whose driver dies: taken up again, they end as if nothing had happened."""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from results.measurement import candidate_key
from results.store import MeasurementStore
from rope.factors import RescaleFactors
from rope.methods import METHODS
from search.evolution import evolve, measure_formulas
from search.journal import mend_journal
from search.judging import measure_picks
from search.ledger import Ledger, Scored
from search.monotone_space import CoordinateSpace, MonotoneSpace
from search.objectives import Objectives
from search.panels import Panels
from search.parametrization import all_pairs
from search.progress import Plan, SearchProgress
from search.racing import Racing
from search.samplers.cmaes import CmaesConfig, CmaesSampler
from search.samplers.gradient import GradientConfig, GradientSampler
from search.samplers.joint import JointSampler, Schedule
from search.samplers.longrope2 import EvolutionConfig, LongRoPE2Sampler
from search.samplers.named import NamedConfig, NamedSampler
from search.space import SearchSpace
from search.study import Trials, open_storage, open_study
from workers.scorer import Scorer

MakeScorer = Callable[..., Scorer]

PLAN = Plan(model="a model", original_length=256, target_length=1024, num_candidates=10, num_documents=100)
WINDOWS = {"original_length": 256, "target_length": 1024}
FORMULAS = [METHODS[name](16, 500.0, **WINDOWS).with_temperature(1.1) for name in ("none", "linear", "yarn")]
FREE = all_pairs(8)
HIDDEN = np.log([1.0, 1.1, 1.4, 2.0, 3.0, 4.4, 4.6, 5.0])
DOCUMENTS = tuple(f"document-{number}" for number in range(14))
FIXED = Panels(documents=DOCUMENTS[:6], size=6)
FRESH = Panels(documents=DOCUMENTS, size=6, num_fresh=6)
OVERLAPPING = Panels(documents=DOCUMENTS, size=6, num_fresh=2)
EVOLUTION = EvolutionConfig(population_size=8, num_parents=4, num_mutations=3, num_crossovers=3, num_generations=2)


def paper(schedule: Schedule, *, remeasures_parents: bool = False) -> JointSampler:
    space = SearchSpace(
        rotary_dim=16,
        base=500.0,
        original_length=256,
        target_length=1024,
        critical_dims=(2, 3, 4),
        low=4.0,
        high=8.0,
        step=0.01,
        attention_temperature=1.1,
    )
    return LongRoPE2Sampler(space, EVOLUTION, seed=0, schedule=schedule, remeasures_parents=remeasures_parents)


def remeasuring(schedule: Schedule) -> JointSampler:
    return paper(schedule, remeasures_parents=True)


def cmaes(schedule: Schedule) -> JointSampler:
    config = CmaesConfig(population_size=5, num_generations=3)
    return CmaesSampler(
        MonotoneSpace(template=FORMULAS[2], parametrization=FREE, high=16.0),
        config,
        start=FORMULAS[2],
        seed=0,
    )


def gradient(schedule: Schedule) -> JointSampler:
    config = GradientConfig(num_steps=12, learning_rate=0.05)
    return GradientSampler(
        MonotoneSpace(template=FORMULAS[2], parametrization=FREE, high=16.0),
        config,
        start=FORMULAS[2],
    )


def tpe(schedule: Schedule) -> JointSampler:
    config = NamedConfig(population_size=5, num_candidates=15)
    space = CoordinateSpace(template=FORMULAS[2], parametrization=FREE, high=16.0)
    return NamedSampler(space, config, name="tpe", start=FORMULAS[2], seed=0, schedule=schedule)


def shift(document: str) -> Any:
    """What a document's own optimum differs by from the hidden one, in log lambda."""
    return 0.8 * np.random.default_rng(int(document.removeprefix("document-"))).standard_normal(8)


def loss(factors: RescaleFactors, document: str) -> float:
    distance = float(np.sum((np.log(factors.values) - HIDDEN - shift(document)) ** 2))
    return distance + (factors.attention_temperature - 1.3) ** 2


def slope(factors: RescaleFactors, document: str) -> list[float]:
    return [
        *(2 * (np.log(factors.values) - HIDDEN - shift(document))),
        2 * (factors.attention_temperature - 1.3),
    ]


class KilledError(Exception):
    """Stands for a driver that dies between two documents."""


class Case(NamedTuple):
    """A search of which no kill may change anything."""

    make_sampler: Callable[[Schedule], JointSampler]
    schedule: Schedule
    panels: Panels
    capacity: int = 1
    """Above 1 tasks finish in an order of their own in every process."""
    budget: int | None = None
    racing: Racing | None = Racing()


class Ending(NamedTuple):
    """All that a search leaves."""

    scored: list[Scored]
    trials: list[dict[str, Any]]
    measurements: dict[tuple[str, str], tuple[float, tuple[float, ...] | None]]
    spent: int


class Search:
    """A search in one folder that can be taken up again and again, as a killed driver's is."""

    def __init__(
        self, folder: Path, case: Case, make_scorer: MakeScorer, *, storage: BaseStorage | None = None
    ) -> None:
        """Take a new folder, and a storage that outlives a process; default: the journal in the folder."""
        folder.mkdir()
        self._folder = folder
        self._storage = storage
        self._case = case
        self._make_scorer = make_scorer
        self.calls: Counter[tuple[str, str]] = Counter()

    def run(self, *, documents: float = math.inf, seed: int = 0) -> Ending:
        """Search until so many documents more are measured, then die without a word; return what was found."""
        case, left = self._case, documents

        def mortal(factors: RescaleFactors, document: str) -> float:
            nonlocal left
            if left <= 0:
                raise KilledError
            left -= 1
            self.calls[candidate_key(factors), document] += 1
            return loss(factors, document)

        mend_journal(self._folder)
        study = open_study("s", storage=self._storage or open_storage(None, run_dir=self._folder), identity={}, note="")
        store = MeasurementStore(self._folder)
        ledger = Ledger(
            trials=Trials(study),
            scorer=self._make_scorer(mortal, capacity=case.capacity, rng=np.random.default_rng(seed), gradient=slope),
            store=store,
            progress=SearchProgress(PLAN, console=Console(file=io.StringIO())),
            panels=case.panels,
            objectives=Objectives(),
            racing=case.racing,
            measurements=store.recover(),
        )
        formulas = measure_formulas(ledger, FORMULAS, case.panels.of(0))
        sampler = case.make_sampler(case.schedule)
        found = evolve(ledger, sampler, schedule=case.schedule, budget=case.budget)
        picks = [entry.factors for entry in found[:1]] + sampler.picks(ledger.trials.searched(sampler))[:2]
        distinct = {candidate_key(factors): factors for factors in picks}
        finalists = measure_picks(ledger, list(distinct.values()), case.panels.documents[:8])
        measurements = {
            (entry.candidate, entry.document): (entry.sum_nll, entry.gradient)
            for entry in MeasurementStore(self._folder).recover()
        }
        trials = [_described(trial) for trial in study.get_trials()]
        return Ending([*formulas, *found, *finalists], trials, measurements, ledger.spent)

    def num_rows(self) -> int:
        """Return the number of records in the files, before anything could hide one that is there twice."""
        return sum(pq.read_metadata(part).num_rows for part in (self._folder / "measurements").iterdir())


def _described(trial: FrozenTrial) -> dict[str, Any]:
    described = vars(trial).copy()
    for of_the_clock in ("_datetime_start", "datetime_complete"):
        described.pop(of_the_clock)
    return described


CASES = {
    "longrope2, one by one": Case(paper, "steady", FIXED),
    "longrope2, in generations": Case(paper, "generational", FIXED, capacity=5),
    "longrope2 without a race": Case(paper, "steady", FIXED, racing=None),
    "longrope2 on fresh documents": Case(remeasuring, "generational", OVERLAPPING, capacity=3),
    "longrope2 on a budget": Case(paper, "steady", FIXED, budget=75),
    "longrope2 in generations on a budget": Case(paper, "generational", FIXED, capacity=5, budget=60),
    "cmaes, one by one": Case(cmaes, "steady", FRESH),
    "cmaes, in generations": Case(cmaes, "generational", FRESH, capacity=4),
    "gradient, one by one": Case(gradient, "steady", FRESH),
    "gradient on documents that return": Case(gradient, "steady", OVERLAPPING),
    "gradient, in generations": Case(gradient, "generational", FRESH, capacity=8),
    "gradient on a budget": Case(gradient, "steady", FRESH, budget=100),
    "tpe, one by one": Case(tpe, "steady", FIXED),
    "tpe, in generations": Case(tpe, "generational", FIXED, capacity=4),
}


@pytest.fixture(params=list(CASES), scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def undisturbed(case: Case, make_scorer: MakeScorer, tmp_path_factory: pytest.TempPathFactory) -> Ending:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return Search(folder, case, make_scorer, storage=InMemoryStorage()).run()


def kills(total: int) -> Iterator[int]:
    """Documents after which a driver dies: the last but one, and some before."""
    yield total - 1
    yield from (int(number) for number in np.random.default_rng(total).integers(1, total - 1, size=2))


def test_a_search_that_is_killed_after_any_document_ends_as_an_undisturbed_one(
    case: Case, undisturbed: Ending, make_scorer: MakeScorer, tmp_path: Path
) -> None:
    total = len(undisturbed.measurements)
    for documents in kills(total):
        search = Search(tmp_path / str(documents), case, make_scorer, storage=InMemoryStorage())
        with pytest.raises(KilledError):
            search.run(documents=documents, seed=1)
        assert search.run(seed=2) == undisturbed
        assert search.num_rows() == total
        assert search.calls.total() == total


def test_a_search_that_is_killed_again_and_again_ends_as_an_undisturbed_one_and_then_measures_nothing(
    case: Case, undisturbed: Ending, make_scorer: MakeScorer, tmp_path: Path
) -> None:
    total = len(undisturbed.measurements)
    search = Search(tmp_path / "run", case, make_scorer)
    rng = np.random.default_rng(5)
    for seed in range(2):
        with pytest.raises(KilledError):
            search.run(documents=int(rng.integers(1, total // 3)), seed=seed)
    assert search.run() == undisturbed
    assert search.run(documents=0) == undisturbed
    assert search.num_rows() == search.calls.total() == total


def test_these_searches_drop_some_candidates_and_measure_others_again(undisturbed: Ending, case: Case) -> None:
    # Otherwise the tests above would say less than they seem to
    searched = [trial for trial in undisturbed.trials if "generation" in trial["_user_attrs"]]
    states = Counter(trial["state"] for trial in searched)
    assert states[TrialState.COMPLETE] >= 2
    # on fresh documents there may be nobody to race against
    if case.panels is FIXED:
        assert (states[TrialState.PRUNED] > 0) == (case.racing is not None)
    operators = Counter(trial["_user_attrs"]["operator"] for trial in searched)
    assert (operators["re-measured"] > 0) == (case.make_sampler is remeasuring)


def test_a_steady_search_on_many_workers_goes_on_without_measuring_anything_twice(
    make_scorer: MakeScorer, tmp_path: Path
) -> None:
    search = Search(tmp_path / "run", Case(paper, "steady", FIXED, capacity=9), make_scorer)
    for documents in (10, 20, 30):
        with pytest.raises(KilledError):
            search.run(documents=documents, seed=documents)
    ending = search.run()
    assert max(search.calls.values()) == 1
    assert search.num_rows() == search.calls.total()
    searched = [trial for trial in ending.trials if "generation" in trial["_user_attrs"]]
    assert len(searched) == 8 + 2 * 6
    assert {trial["state"] for trial in searched} <= {TrialState.COMPLETE, TrialState.PRUNED}
