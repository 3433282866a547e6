"""The real command with every kind of algorithm: taken up after an interruption, with two objectives, with a cap."""

import math
from itertools import pairwise
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from results.store import read_measurements
from results.summary import Summary
from rope.factors import load_factors
from search.cli import main
from search.journal import JOURNAL
from tests.search.running import HAYSTACK, MODEL, TINY, interrupt_after

ALGORITHMS = {
    "gradient": ["--algorithm=gradient", "--gradient.num-steps=5", "--documents.num-per-candidate=2"],
    "cmaes": [
        "--algorithm=cmaes",
        "--cmaes.population-size=6",
        "--cmaes.num-generations=2",
        "--documents.num-per-candidate=2",
        "--racing=wilcoxon",
    ],
    "tpe": ["--algorithm=tpe", "--optuna.num-candidates=8", "--optuna.population-size=4", "--monotone.knots=6"],
    "longrope2": [
        "--algorithm=longrope2",
        "--evolution.population-size=10",
        "--evolution.num-generations=1",
        "--evolution.num-parents=3",
        "--evolution.num-mutations=3",
        "--evolution.num-crossovers=3",
        "--documents.num-per-candidate=4",
        "--fresh-documents=2",
    ],
}


def search_by(algorithm: str, run_dir: Path, *options: str) -> int:
    base = [f"--model={MODEL}", f"--corpus={HAYSTACK}", "--target-length=512", "--dtype=float32"]
    return main(["search", *base, f"--run-dir={run_dir}", *TINY, *ALGORITHMS[algorithm], *options])


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_every_algorithm_taken_up_ends_as_an_undisturbed_one(algorithm: str, tmp_path: Path) -> None:
    assert search_by(algorithm, tmp_path / "one") == 0
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_after(33, monkeypatch)
        assert search_by(algorithm, tmp_path / "two") == 2
    assert search_by(algorithm, tmp_path / "two") == 0
    one, two = (Summary.from_json((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert two.methods == one.methods
    assert {method.name for method in one.methods if method.kind == "searched"} == {f"{algorithm}-search"}
    mine, theirs = (load_factors(tmp_path / name / "factors.json") for name in ("one", "two"))
    assert mine.values == theirs.values
    by_pair = [
        read_measurements(tmp_path / name).set_index(["candidate", "document"])["sum_nll"].sort_index()
        for name in ("one", "two")
    ]
    assert by_pair[0].equals(by_pair[1])


def test_two_objectives_give_a_front_and_the_pick_is_its_knee(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--objectives=long,short", "--documents.num-short=4", "--optuna.num-candidates=12"]
    assert search_by("tpe", tmp_path / "run", "--algorithm=nsga2", *options) == 0
    summary = Summary.from_json((tmp_path / "run" / "summary.json").read_text())
    assert sum(point.is_knee for point in summary.front) == 1
    for one, other in pairwise(summary.front):
        assert one.long_perplexity < other.long_perplexity
        assert one.short_ratio > other.short_ratio
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "run" / JOURNAL)))
    study = optuna.load_study(study_name=None, storage=storage)
    assert len(study.directions) == 2
    best = {tuple(trial.values) for trial in study.best_trials}
    assert {(point.long_perplexity, point.short_ratio) for point in summary.front} == best  # Optuna's own front
    assert "Pareto front of the search" in capsys.readouterr().out


def test_the_cap_changes_what_a_candidate_is_chosen_by_and_not_what_is_reported(tmp_path: Path) -> None:
    assert search_by("tpe", tmp_path / "run", "--aggregate=capped") == 0
    measurements = read_measurements(tmp_path / "run")
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "run" / JOURNAL)))
    trials = optuna.load_study(study_name=None, storage=storage).trials
    assert all(trial.values[0] <= 10 for trial in trials)  # e to the power of ln 10
    assert measurements["sum_nll"].div(measurements["num_tokens"]).max() > math.log(10)
