"""The configuration: the paper's defaults, and values that cannot be used."""

from pathlib import Path
from typing import Any

import pytest

from results.urls import without_password
from rope.methods import METHODS
from search.config import ALGORITHMS, SearchConfig, has_password, resolved_config
from search.racing import Racing
from search.samplers.cmaes import CmaesConfig
from search.samplers.gradient import GradientConfig
from search.samplers.longrope2 import EvolutionConfig
from search.samplers.named import NamedConfig
from search.sections import DocumentsConfig, FormulasConfig, MonotoneConfig, SpaceConfig

REQUIRED: dict[str, Any] = {"model": "folder", "corpus": "noise", "target_length": 1024}


def test_the_defaults_are_the_papers() -> None:
    evolution = EvolutionConfig()
    assert (evolution.population_size, evolution.num_parents) == (64, 32)
    assert (evolution.num_mutations, evolution.num_crossovers) == (16, 16)
    assert evolution.num_generations == 40
    assert evolution.mutation_probability == 0.3
    assert SpaceConfig().step == 0.01
    assert evolution.crossover_probability == 0.3 * 0.5  # the published code's
    assert evolution.generation_size == 32


def test_every_formula_is_measured_unless_the_user_says_otherwise() -> None:
    config = SearchConfig(**REQUIRED)
    assert config.formulas.methods == list(METHODS)
    assert config.formulas.temperatures == ["paper", "none", "longrope", "yarn"]
    assert config.space.attention_temperature == "longrope"
    assert config.workers == 0
    assert config.storage is None


def test_what_is_missing_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"^a search needs --model, --corpus, --target-length; give them as options or in a file by --"
    ):
        SearchConfig()
    for name, flag in (("model", "--model"), ("corpus", "--corpus"), ("target_length", "--target-length")):
        with pytest.raises(ValueError, match=rf"^a search needs {flag}; give them"):
            SearchConfig(**{key: value for key, value in REQUIRED.items() if key != name})


def test_a_target_below_zero_counts_as_missing() -> None:
    with pytest.raises(ValueError, match=r"^a search needs --target-length;"):
        SearchConfig(**REQUIRED | {"target_length": -5})


@pytest.mark.parametrize("name", ["workers", "gpus_per_worker", "cpus_per_worker", "retries"])
def test_negative_resources_are_refused(name: str) -> None:
    message = r"^--workers, --gpus-per-worker, --cpus-per-worker and --retries must not be negative$"
    with pytest.raises(ValueError, match=message):
        SearchConfig(**REQUIRED | {name: -1})


def test_no_finalist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^--num-finalists must be at least 1, got 0$"):
        SearchConfig(**REQUIRED, num_finalists=0)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^--seed must not be negative, got -1$"):
        SearchConfig(**REQUIRED, seed=-1)


@pytest.mark.parametrize(
    "name", ["num_search", "num_heldout", "num_original", "num_validation", "num_needles", "batch_size"]
)
def test_no_documents_are_refused(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=rf"^documents\.{name} must be at least 1, got 0\. Raise it\.$"):
        DocumentsConfig(**options)


def test_an_unknown_formula_is_refused_and_the_known_ones_are_listed() -> None:
    known = rf"^formulas\.methods must name at least one of {', '.join(METHODS)}, got"
    with pytest.raises(ValueError, match=rf"{known} ntk2\. Choose from these\.$"):
        FormulasConfig(methods=["ntk", "ntk2"])
    with pytest.raises(ValueError, match=rf"{known} an empty list\. Choose from these\.$"):
        FormulasConfig(methods=[])


@pytest.mark.parametrize("name", ["population_size", "num_parents", "max_tries"])
def test_an_evolution_without_candidates_is_refused(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=rf"^evolution\.{name} must be at least 1, got 0$"):
        EvolutionConfig(**options)


@pytest.mark.parametrize("name", ["num_mutations", "num_crossovers", "num_generations"])
def test_negative_counts_are_refused(name: str) -> None:
    options: dict[str, Any] = {name: -1}
    with pytest.raises(ValueError, match=rf"^evolution\.{name} must not be negative, got -1$"):
        EvolutionConfig(**options)


def test_an_empty_generation_is_refused_unless_there_is_none() -> None:
    message = (
        r"^a generation must have a candidate, got evolution\.num_mutations 0 and evolution\.num_crossovers 0; "
        r"raise one or set evolution\.num_generations to 0$"
    )
    with pytest.raises(ValueError, match=message):
        EvolutionConfig(num_mutations=0, num_crossovers=0)
    assert EvolutionConfig(num_mutations=0, num_crossovers=0, num_generations=0).generation_size == 0


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["mutation_probability", "crossover_probability"])
def test_probabilities_outside_zero_to_one_are_refused(name: str, probability: float) -> None:
    options: dict[str, Any] = {name: probability}
    with pytest.raises(ValueError, match=rf"^evolution\.{name} must lie in \(0, 1\], got {probability}$"):
        EvolutionConfig(**options)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("postgresql://me:secret@host:5432/studies", "postgresql://me@host:5432/studies"),
        ("postgresql://me:p@ss@host/studies", "postgresql://me@host/studies"),
        ("postgresql://host/studies?user=me&password=secret&x=1", "postgresql://host/studies?user=me&x=1"),
        ("postgresql://host/studies?password=secret", "postgresql://host/studies"),
        ("sqlite:///studies.db", "sqlite:///studies.db"),
    ],
)
def test_a_password_in_a_storage_url_is_in_no_copy_of_the_configuration(url: str, kept: str) -> None:
    config = SearchConfig(model="m", corpus="noise", target_length=1024, storage=url)
    assert resolved_config(config, 256, Path("run"), model_fingerprint="0")["storage"] == kept
    assert has_password(url) == (kept != url)
    assert "secret" not in without_password(f"--storage={url}")


@pytest.mark.parametrize(
    ("algorithm", "setting", "named"),
    [
        ("longrope2", {"cmaes": CmaesConfig(sigma=0.2)}, "cmaes"),
        ("longrope2", {"monotone": MonotoneConfig(knots=8)}, "monotone"),
        ("cmaes", {"evolution": EvolutionConfig(num_generations=1)}, "evolution"),
        ("cmaes", {"space": SpaceConfig(low=2.0)}, "space"),
        ("gradient", {"optuna": NamedConfig(num_candidates=3)}, "optuna"),
        ("tpe", {"gradient": GradientConfig(num_steps=3)}, "gradient"),
    ],
)
def test_settings_of_the_other_algorithm_are_refused_since_they_would_have_no_effect(
    algorithm: str, setting: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=rf"^settings of {named} must go with their own algorithm, got them with"):
        SearchConfig(model="m", corpus="noise", target_length=1024, algorithm=algorithm, **setting)


def test_what_the_user_left_open_is_in_the_resolved_configuration() -> None:
    config = SearchConfig(model="m", corpus="noise", target_length=1024)
    settings = resolved_config(config, 256, Path("runs/one"), model_fingerprint="0")
    assert (settings["original_length"], settings["run_dir"]) == (256, "runs/one")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"gpus_per_worker": 1}, r"^--gpus-per-worker must go with --workers, got none, where it has no effect"),
        ({"min_workers": 1}, r"^--min-workers must go with --workers, got none"),
        ({"document_timeout": 3.0}, r"^--document-timeout must go with --workers, got none"),
        ({"workers": 2, "gpus_per_worker": 1.5}, r"^--gpus-per-worker must be a whole number above 1, got 1\.5\."),
        ({"workers": 2, "min_workers": 3}, r"^--min-workers must lie between 1 and --workers, got 3 of 2"),
        ({"workers": 2, "min_workers": 0}, r"^--min-workers must lie between 1 and --workers, got 0 of 2"),
        ({"workers": 2, "document_timeout": 0.0}, r"^--document-timeout must be above 0 seconds, got 0"),
        ({"resume": True}, r"^--resume must go with --run-dir, got it without"),
    ],
)
def test_settings_that_cannot_take_effect_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(model="m", corpus="noise", target_length=1024, **setting)


def test_no_password_is_in_the_resolved_configuration() -> None:
    config = SearchConfig(**REQUIRED, storage="postgresql://me:se@cret@host/db", mirror="s3://key:secret@bucket/run")
    settings = resolved_config(config, 256, Path("run"), model_fingerprint="0")
    assert (settings["storage"], settings["mirror"]) == ("postgresql://me@host/db", "s3://key@bucket/run")


def test_the_default_algorithm_moves_over_many_documents() -> None:
    config = SearchConfig(**REQUIRED)
    assert config.algorithm == "gradient"
    assert (config.num_search_documents, config.num_per_candidate, config.num_fresh_documents) == (400, 4, 4)
    assert config.num_formula_documents == 24
    assert config.races


def test_the_papers_evolution_has_its_ten_documents_and_no_fresh_ones() -> None:
    config = SearchConfig(**REQUIRED, algorithm="longrope2")
    assert (config.num_search_documents, config.num_per_candidate, config.num_fresh_documents) == (10, 10, 0)
    assert config.num_formula_documents == 10


@pytest.mark.parametrize("name", ["annealing", "grid", "brute-force"])
def test_an_algorithm_that_does_not_exist_or_cannot_serve_is_refused_and_the_known_ones_are_listed(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^--algorithm must be one of {', '.join(ALGORITHMS)}, got '{name}'"):
        SearchConfig(**REQUIRED, algorithm=name)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"documents": DocumentsConfig(num_search=1), "racing": "wilcoxon"},
            r"^--racing wilcoxon must have at least 5 search documents, got 1: fewer cannot show that ",
        ),
        (
            {"objectives": "long,short", "racing": "wilcoxon", "algorithm": "nsga2"},
            r"^--racing wilcoxon must go with one objective, got long,short",
        ),
        (
            {"racing": "none", "race": Racing(p_value=0.01)},
            r"^settings of race must go with --racing wilcoxon, got none",
        ),
        ({"objectives": "speed"}, r"^--objectives must be long or long,short .*, got 'speed'\. Choose one of them\.$"),
        ({"objectives": "short"}, r"^--objectives must be long or long,short .*, got 'short'"),
        ({"objectives": "long,short,long"}, r"^--objectives must be long or long,short .*, got 'long,short,long'"),
        (
            {"objectives": "long,short", "algorithm": "optuna-cmaes"},
            r"^the sampler optuna-cmaes must have one objective, got 2\. Choose one of tpe, ",
        ),
        ({"documents": DocumentsConfig(num_short=3)}, r"^documents\.num_short must go with --objectives long,short"),
        ({"budget": 0}, r"^--budget must be at least 1 forward, got 0"),
        (
            {"algorithm": "tpe", "fresh_documents": 2, "documents": DocumentsConfig(num_per_candidate=4)},
            r"^--fresh-documents must go with gradient, cmaes or longrope2, got tpe, which would compare",
        ),
        (
            {"algorithm": "longrope2", "fresh_documents": 2},
            r"^--fresh-documents must have other documents to take from",
        ),
        (
            {"algorithm": "longrope2", "fresh_documents": 2, "documents": DocumentsConfig(num_per_candidate=4)},
            r"^--fresh-documents must go with --schedule generational for longrope2",
        ),
        ({"fresh_documents": 5}, r"^--fresh-documents must lie between 0 and the 4 documents of a candidate, got 5"),
        (
            {"documents": DocumentsConfig(num_search=4, num_per_candidate=5)},
            r"^documents\.num_per_candidate must be at most documents\.num_search, got 5 of 4",
        ),
        ({"documents": DocumentsConfig(num_search=4, num_formula=5)}, r"^documents\.num_formula must be at most"),
        (
            {"ranking_weights": "int8"},
            r"^--ranking-weights int8 must go with an algorithm that needs no gradient",
        ),
        (
            {"ranking_weights": "fp8", "algorithm": "cmaes", "dtype": "float32"},
            r"^--ranking-weights fp8 must go with --dtype bfloat16, got float32\.",
        ),
        (
            {"ranking_weights": "fp8", "algorithm": "cmaes", "device": "cpu"},
            r"^--ranking-weights fp8 must go with a GPU, got --device cpu\.",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**REQUIRED | setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"knots": 3}, r"^monotone\.knots must be at least 4, got 3"),
        ({"knots": 8, "free": "critical"}, r"^monotone\.knots must go with monotone\.free all, got critical"),
    ],
)
def test_a_spline_that_cannot_be_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MonotoneConfig(**setting)
