"""The ledger: what a trial says of its candidate, and storages that cannot be used."""

import math
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState
from optuna_dashboard import get_note

from results.measurement import Measurement, candidate_key
from rope.factors import RescaleFactors
from rope.longrope2 import longrope2_factors
from rope.ntk import ntk_factors
from search.journal import JOURNAL
from search.samplers.joint import METHOD
from search.samplers.longrope2 import EvolutionConfig, LongRoPE2Sampler
from search.space import SearchSpace
from search.study import (
    CANDIDATE,
    NAME,
    Trials,
    check_new,
    open_storage,
    open_study,
)

SMALL = EvolutionConfig(population_size=10, num_parents=4, num_mutations=4, num_crossovers=0, num_generations=3)


def make_measurement(document: str, sum_nll: float, num_tokens: int, failure: str | None = None) -> Measurement:
    return Measurement(
        candidate="0" * 16,
        document=document,
        split="search",
        depth=0.5,
        sum_nll=sum_nll,
        num_tokens=num_tokens,
        seconds=0.0,
        failure=failure,
    )


@pytest.fixture
def ntk() -> RescaleFactors:
    return ntk_factors(32, 1e4, original_length=256, target_length=2048).with_temperature(1.5)


IDENTITY: dict[str, str | int] = {"model": "a model", "target_length": 2048}


def tell_formula(study: optuna.Study, factors: RescaleFactors, measurements: list[Measurement]) -> float:
    trials = Trials(study)
    return trials.tell(trials.ask_formula(factors).trial, measurements)


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
        number, factors, is_told = trials.ask_candidate(sampler)
        trial = study.trials[number]
        assert (trial.state, is_told) == (TrialState.RUNNING, False)
        assert trial.user_attrs[METHOD] == factors.method == "longrope2-search"
        assert trial.user_attrs[CANDIDATE] == candidate_key(factors)
        assert trial.user_attrs["critical_dim"] == trial.params["critical_dim"] == factors.critical_dim
        assert trial.user_attrs["attention_temperature"] == factors.attention_temperature == 1.25
        assert tuple(trial.params.values())[1:] == factors.values
        if trial.user_attrs["operator"] == "mutation":
            assert trial.user_attrs[NAME] == (
                f"generation {trial.user_attrs['generation']}: mutation of {trial.user_attrs['parents'][0]}"
            )
        trials.tell(number, [make_measurement("a", float(number), 10)])


def test_a_study_that_is_taken_up_gives_back_what_was_asked(space: SearchSpace, ntk: RescaleFactors) -> None:
    study, sampler = optuna.create_study(), LongRoPE2Sampler(space, SMALL, seed=0)
    trials = Trials(study)
    formula = trials.ask_formula(ntk)
    candidates = [trials.ask_candidate(sampler) for _ in range(3)]
    for asked in (formula, candidates[1]):
        trials.tell(asked.trial, [make_measurement("a", 2.0, 1)])
    for again in (trials, Trials(study)):
        assert again.ask_formula(ntk) == formula._replace(is_told=True)
        assert again.asked_before(sampler) == [candidates[0], candidates[1]._replace(is_told=True), candidates[2]]
    assert Trials(study).ask_formula(ntk.with_temperature(1.25)).trial == 4  # another formula is another trial


@pytest.mark.parametrize("kind", ["memory", "journal", "sqlite"])
def test_what_the_writer_knows_is_what_the_storage_holds(
    space: SearchSpace, ntk: RescaleFactors, tmp_path: Path, kind: str
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}" if kind == "sqlite" else None
    storage = InMemoryStorage() if kind == "memory" else open_storage(url, run_dir=tmp_path)
    trials, sampler = Trials(open_first(storage)), LongRoPE2Sampler(space, SMALL, seed=0)
    trials.tell(trials.ask_formula(ntk).trial, [make_measurement("a", 2.0, 1)])
    for number in range(12):
        asked = trials.ask_candidate(sampler)
        failed = make_measurement("a", math.nan, 0, "out of memory")
        trials.tell(asked.trial, [failed if number == 3 else make_measurement("a", float(number), 10)])
    trials.ask_candidate(sampler)
    known, stored = trials.searched(sampler), sampler.searched(open_first(storage).get_trials())
    for one, other in zip(known, stored, strict=True):
        assert (one.number, one.state, one.params, one.value) == (other.number, other.state, other.params, other.value)
        assert (one.user_attrs, one.distributions) == (other.user_attrs, other.distributions)
        assert (one.datetime_complete is None) == (other.datetime_complete is None)
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
    trials.tell(asked.trial, [make_measurement("a", 2.0, 1)])
    assert (tmp_path / JOURNAL).read_text().count("\n") == before + 3  # perplexity by depth, and the value


def test_passwords_are_kept_out_of_the_reason_why_a_storage_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Optuna can open") as caught:
        open_storage("postgresql+nodriver://user:secret@localhost/db", run_dir=tmp_path)
    assert "secret" not in str(caught.value)


def test_a_trial_is_told_the_mean_over_documents_of_each_ones_mean_loss(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    # By hand: losses 6/3 = 2 and 4/1 = 4, mean 3
    value = tell_formula(study, ntk, [make_measurement("a", 6.0, 3), make_measurement("b", 4.0, 1)])
    assert value == study.get_trials()[0].value == pytest.approx(math.exp(3.0))


def test_a_failed_document_fails_the_trial_with_the_first_reason(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    measurements = [
        make_measurement("a", 6.0, 3),
        make_measurement("b", math.nan, 0, "out of memory: 12 GiB"),
        make_measurement("c", math.nan, 0, "later"),
    ]
    assert math.isnan(tell_formula(study, ntk, measurements))
    trial = study.get_trials()[0]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["failure"] == "out of memory: 12 GiB"


def test_a_perplexity_beyond_all_numbers_fails_the_trial(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    assert math.isnan(tell_formula(study, ntk, [make_measurement("a", 1e6, 1)]))
    assert study.get_trials()[0].user_attrs["failure"] == "perplexity is inf"
