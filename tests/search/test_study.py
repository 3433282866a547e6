"""The ledger: what a trial says of its candidate, and storages that cannot be used."""

import math
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from results.measurement import Measurement
from rope.factors import RescaleFactors
from rope.longrope2 import longrope2_factors
from rope.ntk import ntk_factors
from search.samplers.generational import METHOD
from search.samplers.longrope2 import EvolutionConfig, LongRoPE2Sampler
from search.space import SearchSpace
from search.study import JOURNAL, ask_candidate, ask_formula, open_storage, open_study, tell


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


def test_a_new_study_is_a_journal_in_the_run_directory_and_can_be_read_again(
    tmp_path: Path, ntk: RescaleFactors
) -> None:
    study = open_study("first", storage=None, run_dir=tmp_path)
    tell(study, ask_formula(study, ntk), [make_measurement("a", 2.0, 1)])
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    again = optuna.load_study(study_name="first", storage=optuna.storages.journal.JournalStorage(backend))
    assert again.best_value == pytest.approx(math.e**2)


def test_any_storage_url_can_hold_the_study(tmp_path: Path, ntk: RescaleFactors) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = open_study("first", storage=open_storage(url, study_name="first"), run_dir=tmp_path / "never made")
    tell(study, ask_formula(study, ntk), [make_measurement("a", 2.0, 1)])
    assert optuna.load_study(study_name="first", storage=url).best_value == pytest.approx(math.e**2)
    assert [path.name for path in tmp_path.iterdir()] == ["studies.db"]


def test_a_study_that_is_there_already_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    for name in ("first", "second"):
        open_study(name, storage=open_storage(url, study_name=name), run_dir=tmp_path)
    message = r"^the storage must not hold a study 'first' yet, got one\. Choose another --run-dir or --storage\.$"
    with pytest.raises(ValueError, match=message):
        open_storage(url, study_name="first")


@pytest.mark.parametrize("url", ["nonsense", "mongodb://localhost/x", "sqlite:////no/such/folder/studies.db"])
def test_a_storage_that_cannot_be_opened_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(
        ValueError, match=r"(?s)^--storage must be a URL that Optuna can open, got an error: .+Correct it"
    ):
        open_storage(url, study_name="first")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("not a database " * 100)
    with pytest.raises(
        ValueError, match=r"^--storage must be a URL that Optuna can open, got an error: .*not a database"
    ):
        open_storage(f"sqlite:///{file}", study_name="first")
    assert file.read_text() == "not a database " * 100


def test_the_reason_why_a_storage_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unable to open database file") as caught:
        open_storage("sqlite:////no/such/folder/studies.db", study_name="first")
    assert "\n" not in str(caught.value)


def test_a_formula_is_a_named_trial_with_its_factors_although_they_lie_outside_the_space(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    longrope2 = longrope2_factors(32, 1e4, original_length=256, target_length=2048)
    for factors in (ntk, longrope2):
        tell(study, ask_formula(study, factors), [make_measurement("a", 1.0, 1)])
    first, second = study.get_trials()
    assert first.user_attrs == {METHOD: "ntk", "attention_temperature": 1.5}
    assert tuple(first.params.values()) == ntk.values
    assert list(first.params) == [f"lambda_{pair:02d}" for pair in range(16)]
    assert second.user_attrs == {METHOD: "longrope2", "attention_temperature": 1.0, "critical_dim": 7}


def test_a_candidate_is_what_the_parameters_of_its_trial_say(space: SearchSpace) -> None:
    study = optuna.create_study(sampler=LongRoPE2Sampler(space, EvolutionConfig(), seed=0))
    for _ in range(20):
        trial, factors = ask_candidate(study, space, method="the search")
        assert trial.user_attrs[METHOD] == factors.method == "the search"
        assert trial.user_attrs["critical_dim"] == trial.params["critical_dim"] == factors.critical_dim
        assert trial.user_attrs["attention_temperature"] == factors.attention_temperature == 1.25
        assert tuple(trial.params.values())[1:] == factors.values


def test_a_trial_is_told_the_mean_over_documents_of_each_ones_mean_loss(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    # By hand: losses 6/3 = 2 and 4/1 = 4, mean 3
    value = tell(study, ask_formula(study, ntk), [make_measurement("a", 6.0, 3), make_measurement("b", 4.0, 1)])
    assert value == study.get_trials()[0].value == pytest.approx(math.exp(3.0))


def test_a_failed_document_fails_the_trial_with_the_first_reason(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    measurements = [
        make_measurement("a", 6.0, 3),
        make_measurement("b", math.nan, 0, "out of memory: 12 GiB"),
        make_measurement("c", math.nan, 0, "later"),
    ]
    assert math.isnan(tell(study, ask_formula(study, ntk), measurements))
    trial = study.get_trials()[0]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["failure"] == "out of memory: 12 GiB"


def test_a_perplexity_beyond_all_numbers_fails_the_trial(ntk: RescaleFactors) -> None:
    study = optuna.create_study()
    assert math.isnan(tell(study, ask_formula(study, ntk), [make_measurement("a", 1e6, 1)]))
    assert study.get_trials()[0].user_attrs["failure"] == "perplexity is inf"
