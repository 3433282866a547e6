"""The ledger: what a trial says of its candidate, and storages that cannot be used."""

import math
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState
from optuna_dashboard import get_note

from results.measurement import Measurement, candidate_key, perplexity
from rope.factors import RescaleFactors
from rope.longrope2 import longrope2_factors
from rope.ntk import ntk_factors
from search.journal import JOURNAL
from search.samplers.joint import GRADIENT, METHOD
from search.samplers.longrope2 import EvolutionConfig, LongRoPE2Sampler
from search.space import SearchSpace
from search.study import (
    CANDIDATE,
    NAME,
    Asked,
    Trials,
    Verdict,
    check_new,
    open_storage,
    open_study,
)
from tests.search.telling import tell

SMALL = EvolutionConfig(population_size=10, num_parents=4, num_mutations=4, num_crossovers=0, num_generations=3)


def make_measurement(
    document: str, sum_nll: float, num_tokens: int, failure: str | None = None, *, depth: float = 0.5
) -> Measurement:
    return Measurement(
        candidate="0" * 16,
        document=document,
        split="search",
        depth=depth,
        sum_nll=sum_nll,
        num_tokens=num_tokens,
        seconds=0.0,
        failure=failure,
    )


@pytest.fixture
def ntk() -> RescaleFactors:
    return ntk_factors(32, 1e4, original_length=256, target_length=2048).with_temperature(1.5)


IDENTITY: dict[str, str | int] = {"model": "a model", "target_length": 2048}


def tell_formula(study: optuna.Study, factors: RescaleFactors, measurements: list[Measurement]) -> None:
    trials = Trials(study)
    verdict = Verdict([perplexity(measurements)], len(measurements))
    trials.tell(trials.ask_formula(factors).trial, measurements, verdict)


def open_first(storage: BaseStorage, **changes: str | int) -> optuna.Study:
    return open_study("first", storage=storage, identity=IDENTITY | changes, note="**what it is**")


def test_a_new_study_is_a_journal_in_the_run_directory_and_can_be_read_again(
    tmp_path: Path, ntk: RescaleFactors
) -> None:
    study = open_first(open_storage(None, run_dir=tmp_path))
    tell_formula(study, ntk, [make_measurement("a", 2.0, 1)])
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    again = open_first(open_storage(None, run_dir=tmp_path))
    assert again.best_value == pytest.approx(math.e**2)
    assert again.user_attrs == IDENTITY
    assert get_note(again) == "**what it is**"


def test_any_storage_url_can_hold_the_study(tmp_path: Path, ntk: RescaleFactors) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = open_first(open_storage(url, run_dir=tmp_path / "never made"))
    tell_formula(study, ntk, [make_measurement("a", 2.0, 1)])
    assert optuna.load_study(study_name="first", storage=url).best_value == pytest.approx(math.e**2)
    assert [path.name for path in tmp_path.iterdir()] == ["studies.db"]


def test_a_new_run_refuses_a_study_that_is_there_already(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}", run_dir=tmp_path)
    check_new(storage, "first")
    open_first(storage)
    message = (
        r"^the storage must not hold a study 'first' yet, got one\. Choose another --run-dir or --storage, or take "
    )
    with pytest.raises(ValueError, match=message):
        check_new(storage, "first")


def test_a_study_of_another_model_or_target_is_refused(tmp_path: Path) -> None:
    storage = open_storage(None, run_dir=tmp_path)
    open_first(storage)
    message = r"^the study 'first' must be of model another, target_length 4096, got one of model a model"
    with pytest.raises(ValueError, match=message):
        open_first(storage, model="another", target_length=4096)


@pytest.mark.parametrize("url", ["nonsense", "mongodb://localhost/x", "sqlite:////no/such/folder/studies.db"])
def test_a_storage_that_cannot_be_opened_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(
        ValueError, match=r"(?s)^--storage must be a URL that Optuna can open, got an error: .+Correct it"
    ):
        open_storage(url, run_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("not a database " * 100)
    with pytest.raises(
        ValueError, match=r"^--storage must be a URL that Optuna can open, got an error: .*not a database"
    ):
        open_storage(f"sqlite:///{file}", run_dir=tmp_path)
    assert file.read_text() == "not a database " * 100


def test_the_reason_why_a_storage_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unable to open database file") as caught:
        open_storage("sqlite:////no/such/folder/studies.db", run_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_formula_is_a_named_trial_with_its_factors_although_they_lie_outside_the_space(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    longrope2 = longrope2_factors(32, 1e4, original_length=256, target_length=2048)
    for factors in (ntk, longrope2):
        tell_formula(study, factors, [make_measurement("a", 1.0, 1)])
    first, second = study.get_trials()
    assert first.user_attrs == {
        NAME: "ntk at temperature 1.5",
        METHOD: "ntk",
        CANDIDATE: candidate_key(ntk),
        "attention_temperature": 1.5,
        "perplexity_by_depth": {"0.50": pytest.approx(math.e, abs=1e-6)},
    }
    assert tuple(first.params.values()) == ntk.values
    assert list(first.params) == [f"lambda_{pair:02d}" for pair in range(16)]
    assert second.user_attrs["critical_dim"] == 7


def test_a_candidate_is_what_the_parameters_of_its_trial_say(space: SearchSpace) -> None:
    study, sampler = optuna.create_study(), LongRoPE2Sampler(space, SMALL, seed=0)
    trials = Trials(study)
    for _ in range(20):
        asked = trials.ask_candidate(sampler)
        factors = asked.factors
        trial = study.trials[asked.trial]
        assert (trial.state, asked.is_told) == (TrialState.RUNNING, False)
        assert asked.generation == trial.user_attrs["generation"]
        assert trial.user_attrs[METHOD] == factors.method == "longrope2-search"
        assert trial.user_attrs[CANDIDATE] == candidate_key(factors)
        assert trial.user_attrs["critical_dim"] == trial.params["critical_dim"] == factors.critical_dim
        assert trial.user_attrs["attention_temperature"] == factors.attention_temperature == 1.25
        assert tuple(trial.params.values())[1:] == factors.values
        if trial.user_attrs["operator"] == "mutation":
            assert trial.user_attrs[NAME] == (
                f"generation {trial.user_attrs['generation']}: mutation of {trial.user_attrs['parents'][0]}"
            )
        tell(trials, asked, asked.trial / 10)


def test_a_study_that_is_taken_up_gives_back_what_was_asked(space: SearchSpace, ntk: RescaleFactors) -> None:
    study, sampler = optuna.create_study(), LongRoPE2Sampler(space, SMALL, seed=0)
    trials = Trials(study)
    formula = trials.ask_formula(ntk)
    candidates = [trials.ask_candidate(sampler) for _ in range(3)]
    for asked in (formula, candidates[1]):
        tell(trials, asked, 2.0)
    for again in (trials, Trials(study)):
        told = [asked._replace(is_told=True, losses=(2.0,)) for asked in (formula, candidates[1])]
        assert [again.ask_formula(ntk), *again.asked_before(sampler)] == [
            told[0],
            candidates[0],
            told[1],
            candidates[2],
        ]
    assert Trials(study).ask_formula(ntk.with_temperature(1.25)).trial == 4  # another formula is another trial


@pytest.mark.parametrize("kind", ["memory", "journal", "sqlite"])
def test_what_the_writer_knows_is_what_the_storage_holds(
    space: SearchSpace, ntk: RescaleFactors, tmp_path: Path, kind: str
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}" if kind == "sqlite" else None
    storage = InMemoryStorage() if kind == "memory" else open_storage(url, run_dir=tmp_path)
    trials, sampler = Trials(open_first(storage)), LongRoPE2Sampler(space, SMALL, seed=0)
    tell(trials, trials.ask_formula(ntk), 2.0)
    for number in range(12):
        loss = None if number == 3 else number / 10
        tell(trials, trials.ask_candidate(sampler), loss, is_dropped=number == 5, gradient=[0.5] * 17)
    trials.ask_candidate(sampler)
    known, stored = trials.searched(sampler), sampler.searched(open_first(storage).get_trials())
    for one, other in zip(known, stored, strict=True):
        assert (one.number, one.state, one.params, one.values) == (
            other.number,
            other.state,
            other.params,
            other.values,
        )
        assert (one.user_attrs, one.distributions) == (other.user_attrs, other.distributions)
        assert (one.datetime_complete is None) == (other.datetime_complete is None)
    assert Counter(trial.state for trial in stored) == {
        TrialState.COMPLETE: 10,
        TrialState.FAIL: 1,
        TrialState.PRUNED: 1,
        TrialState.RUNNING: 1,
    }
    by_time = [
        [trial.number for trial in sorted(found[:-1], key=lambda trial: trial.datetime_complete)]  # type: ignore[arg-type, return-value]
        for found in (known, stored)
    ]
    assert by_time[0] == by_time[1]


def test_a_trial_enters_the_journal_in_one_write(space: SearchSpace, tmp_path: Path) -> None:
    trials = Trials(open_first(open_storage(None, run_dir=tmp_path)))
    before = (tmp_path / JOURNAL).read_text().count("\n")
    asked = trials.ask_candidate(LongRoPE2Sampler(space, SMALL, seed=0))
    assert (tmp_path / JOURNAL).read_text().count("\n") == before + 1
    tell(trials, asked, 2.0)
    assert (tmp_path / JOURNAL).read_text().count("\n") == before + 3  # perplexity by depth, and the value


def test_passwords_are_kept_out_of_the_reason_why_a_storage_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Optuna can open") as caught:
        open_storage("postgresql+nodriver://user:secret@localhost/db", run_dir=tmp_path)
    assert "secret" not in str(caught.value)


def test_a_trial_is_told_the_mean_over_documents_of_each_ones_mean_loss(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    # By hand: losses 6/3 = 2 and 4/1 = 4, mean 3
    tell_formula(study, ntk, [make_measurement("a", 6.0, 3), make_measurement("b", 4.0, 1)])
    assert study.get_trials()[0].value == pytest.approx(math.exp(3.0))


def test_a_trial_says_what_was_lost_at_which_depth(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    tell_formula(study, ntk, [make_measurement("a", 1.0, 1, depth=0.875), make_measurement("b", 2.0, 1, depth=0.125)])
    by_depth = study.get_trials()[0].user_attrs["perplexity_by_depth"]
    assert by_depth == {"0.12": pytest.approx(math.e**2, abs=1e-6), "0.88": pytest.approx(math.e, abs=1e-6)}
    assert list(by_depth) == ["0.12", "0.88"]


def test_a_failed_document_fails_the_trial_with_the_first_reason(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    measurements = [
        make_measurement("a", 6.0, 3),
        make_measurement("b", math.nan, 0, "out of memory: 12 GiB"),
        make_measurement("c", math.nan, 0, "later"),
    ]
    tell_formula(study, ntk, measurements)
    trial = study.get_trials()[0]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["failure"] == "out of memory: 12 GiB"


def test_a_perplexity_beyond_all_numbers_fails_the_trial(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    tell_formula(study, ntk, [make_measurement("a", 1e6, 1)])
    trial = study.get_trials()[0]
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "perplexity is inf")


def test_a_failure_of_the_second_objective_is_named_too(ntk: RescaleFactors) -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    trials = Trials(study)
    trials.tell(trials.ask_formula(ntk).trial, [make_measurement("a", 1.0, 1)], Verdict([2.0, math.inf], 1))
    assert study.get_trials()[0].user_attrs["failure"] == "perplexity is inf"


@pytest.mark.parametrize("kind", ["memory", "journal", "sqlite"])
def test_a_dropped_candidate_is_a_pruned_trial_with_an_estimated_value(
    space: SearchSpace, ntk: RescaleFactors, tmp_path: Path, kind: str
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}" if kind == "sqlite" else None
    storage = InMemoryStorage() if kind == "memory" else open_storage(url, run_dir=tmp_path)
    trials, sampler = Trials(open_first(storage)), LongRoPE2Sampler(space, SMALL, seed=0)
    asked = trials.ask_candidate(sampler)
    read = [make_measurement(document, 2.0, 1) for document in "abcd"]
    trials.tell(asked.trial, read, Verdict([5.0], 10, is_dropped=True))
    again = Trials(open_first(storage))
    (trial,) = again.searched(sampler)
    assert (trial.state, trial.value) == (TrialState.PRUNED, 5.0)
    assert trial.user_attrs["dropped"] == "after 4 of 10 documents; the value is estimated"
    assert GRADIENT not in trial.user_attrs
    # By hand: ln 5 = 1.6094379
    (told,) = again.asked_before(sampler)
    assert told.losses == pytest.approx((1.6094379,))
    assert told == asked._replace(is_told=True, was_dropped=True, losses=told.losses)


def test_a_dropped_candidate_that_could_not_be_measured_has_failed(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    trials = Trials(study)
    failed = make_measurement("a", math.nan, 0, "out of memory")
    trials.tell(trials.ask_formula(ntk).trial, [failed], Verdict([math.nan], 10, is_dropped=True))
    trial = study.get_trials()[0]
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "out of memory")
    asked = Trials(study).ask_formula(ntk)
    assert asked == Asked(0, ntk, is_told=True)


def test_a_trial_of_two_objectives_has_both_values_and_comes_back_with_both(
    space: SearchSpace, ntk: RescaleFactors, tmp_path: Path
) -> None:
    storage = open_storage(None, run_dir=tmp_path)
    study = open_study("two", storage=storage, identity=IDENTITY, note="", directions=("minimize", "minimize"))
    assert study.directions == [optuna.study.StudyDirection.MINIMIZE] * 2
    trials, sampler = Trials(study), LongRoPE2Sampler(space, SMALL, seed=0)
    for asked, losses in ((trials.ask_formula(ntk), (2.0, 0.5)), (trials.ask_candidate(sampler), (1.0, -0.25))):
        tell(trials, asked, losses)
    assert [trial.values for trial in study.get_trials()] == [
        pytest.approx([math.exp(2.0), math.exp(0.5)]),
        pytest.approx([math.exp(1.0), math.exp(-0.25)]),
    ]
    assert [trial.number for trial in study.best_trials] == [1]
    (candidate,) = Trials(study).asked_before(sampler)
    assert candidate.losses == pytest.approx((1.0, -0.25))


def test_a_gradient_stays_with_its_trial_to_the_last_bit(space: SearchSpace, tmp_path: Path) -> None:
    gradient = [1 / 3, -2e-17, 0.1 + 0.2]
    trials, sampler = Trials(open_first(open_storage(None, run_dir=tmp_path))), LongRoPE2Sampler(space, SMALL, seed=0)
    tell(trials, trials.ask_candidate(sampler), 1.0, gradient=gradient)
    for known in (trials, Trials(open_first(open_storage(None, run_dir=tmp_path)))):
        assert [trial.user_attrs[GRADIENT] for trial in known.searched(sampler)] == [gradient]


def test_a_finalist_is_a_trial_of_its_own_with_its_own_name_and_not_a_searched_one(
    space: SearchSpace,
) -> None:
    study, sampler = optuna.create_study(), LongRoPE2Sampler(space, SMALL, seed=0)
    trials = Trials(study)
    candidate = trials.ask_candidate(sampler)
    tell(trials, candidate, 1.0)
    finalist = trials.ask_formula(candidate.factors, name="finalist 1")
    assert finalist.trial == 1
    assert study.trials[1].user_attrs[NAME] == "finalist 1"
    assert study.trials[1].user_attrs[METHOD] == "longrope2-search"
    assert [trial.number for trial in trials.searched(sampler)] == [0]
    assert Trials(study).ask_formula(candidate.factors, name="finalist 1") == finalist
