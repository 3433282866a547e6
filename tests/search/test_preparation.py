"""What comes before the first measurement: documents, formulas, the space."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from results.measurement import candidate_key
from rope.factors import RescaleFactors
from rope.linear import linear_factors
from rope.methods import METHODS
from search.config import SearchConfig
from search.formulas import formula_factors, warmer
from search.monotone_space import MonotoneSpace
from search.panels import by_depth
from search.preparation import build_run_documents, check_budget, longrope2_space, make_sampler, panels_of
from search.sections import DocumentsConfig, FormulasConfig, MonotoneConfig, SpaceConfig
from workers.geometry import RopeGeometry
from workers.model import ModelDescription

ORACLES = Path(__file__).parents[1] / "oracles"
ORIGINAL, TARGET = 800, 1600
LLAMA3 = RopeGeometry(rotary_dim=128, base=500_000.0, original_length=8192)
SMALL = RopeGeometry(rotary_dim=32, base=10_000.0, original_length=ORIGINAL)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def small(tokenizer: PreTrainedTokenizerFast) -> ModelDescription:
    return ModelDescription(geometry=SMALL, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def llama3(tokenizer: PreTrainedTokenizerFast) -> ModelDescription:
    return ModelDescription(geometry=LLAMA3, tokenizer=tokenizer)


def make_config(**changes: Any) -> SearchConfig:
    base: dict[str, Any] = {"model": "folder", "corpus": "distractors", "target_length": TARGET}
    counts = DocumentsConfig(num_search=4, num_validation=5, num_heldout=3, num_original=2)
    return SearchConfig(**base | {"algorithm": "longrope2", "documents": counts} | changes)


def test_llama3_from_8k_to_128k_has_the_papers_space(llama3: ModelDescription) -> None:
    formula = linear_factors(128, 5e5, original_length=8192, target_length=131_072)
    space = longrope2_space(make_config(target_length=131_072), llama3, formula)
    assert space.critical_dims == tuple(range(24, 36))
    assert (space.low, space.high, space.step) == (16.0, 32.0, 0.01)
    assert space.num_pairs == 64
    assert space.attention_temperature == pytest.approx(1.1435437497937313, rel=1e-15)  # the published config's


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("none", 1.0), ("yarn", 0.1 * math.log(16) + 1), (1.3, 1.3), ("1.3", 1.3), ("best", 1.75)],
)
def test_the_temperature_of_candidates_is_the_users_choice(
    llama3: ModelDescription, choice: str | float, expected: float
) -> None:
    best = linear_factors(128, 5e5, original_length=8192, target_length=131_072).with_temperature(1.75)
    config = make_config(target_length=131_072, space=SpaceConfig(attention_temperature=choice))
    assert longrope2_space(config, llama3, best).attention_temperature == pytest.approx(expected, rel=1e-15)


def test_the_users_critical_dimensions_and_bounds_are_kept(llama3: ModelDescription) -> None:
    formula = linear_factors(128, 5e5, original_length=8192, target_length=131_072)
    config = make_config(
        target_length=131_072, space=SpaceConfig(critical_dims=[33, 30], low=12.0, high=40.0, step=0.5)
    )
    space = longrope2_space(config, llama3, formula)
    assert (space.critical_dims, space.low, space.high, space.step) == ((30, 33), 12.0, 40.0, 0.5)


def test_documents_have_the_lengths_numbers_and_splits_that_were_asked_for(small: ModelDescription) -> None:
    documents = build_run_documents(make_config(), small)
    shapes = {
        name: [(document.length, document.split) for document in part] for name, part in documents._asdict().items()
    }
    assert shapes == {
        "search": [(TARGET, "search")] * 4,
        "short": [],
        "validation": [(TARGET, "validation")] * 5,
        "heldout": [(TARGET, "heldout")] * 3,
        "original": [(ORIGINAL, "heldout")] * 2,
        "own_window": [],
    }
    assert len({document.id for document in documents.all}) == 14


def test_two_objectives_and_several_needles_have_documents_of_their_own(small: ModelDescription) -> None:
    counts = DocumentsConfig(num_search=4, num_validation=5, num_heldout=3, num_original=2, num_short=3, num_needles=2)
    config = make_config(documents=counts, objectives="long,short")
    documents = build_run_documents(config, small)
    assert [(document.length, document.split) for document in documents.short] == [(ORIGINAL, "search")] * 3
    assert {document.length for document in documents.own_window} == {ORIGINAL}
    assert {len(document.needles) for document in [*documents.search, *documents.own_window]} == {2}
    assert {len(document.needles) for document in [*documents.validation, *documents.heldout]} == {1}
    panels = panels_of(config, documents)
    assert panels.of(0) == by_depth(documents.search) + tuple(document.id for document in documents.short)


def test_no_two_documents_of_a_run_share_a_needle(small: ModelDescription) -> None:
    # So many that a key of the 10,080 would repeat if the three parts were drawn apart
    config = make_config(documents=DocumentsConfig(num_search=80, num_validation=80, num_heldout=80, num_original=80))
    documents = build_run_documents(config, small)
    assert len({document.needle.key for document in documents.all}) == 320
    assert len({document.needle.value for document in documents.all}) == 320


def test_documents_follow_from_the_seed(small: ModelDescription) -> None:
    one, same, other = (build_run_documents(make_config(seed=seed), small).all for seed in (3, 3, 4))
    assert one == same
    assert not {document.id for document in one} & {document.id for document in other}


@pytest.mark.parametrize("target_length", [ORIGINAL, ORIGINAL - 1])
def test_a_target_that_is_not_above_the_window_is_refused(small: ModelDescription, target_length: int) -> None:
    message = (
        rf"^--target-length must be above the model's original window of {ORIGINAL} tokens, got {target_length}\. "
        r"Ask for more, or set the window with --original-length\.$"
    )
    with pytest.raises(ValueError, match=message):
        build_run_documents(make_config(target_length=target_length), small)


def test_every_formula_comes_at_every_temperature_and_each_candidate_once(llama3: ModelDescription) -> None:
    config = make_config(target_length=131_072)
    formulas = formula_factors(config, llama3)
    assert len({candidate_key(factors) for factors in formulas}) == len(formulas)
    longrope, yarn = math.sqrt(1 + math.log(16) / math.log(8192)), 0.1 * math.log(16) + 1
    for name in METHODS:
        temperatures = sorted(factors.attention_temperature for factors in formulas if factors.method == name)
        # Each paper's own is one of the three
        np.testing.assert_allclose(temperatures, [1.0, longrope, yarn], rtol=1e-14)


def test_a_formula_comes_first_at_its_own_papers_temperature(llama3: ModelDescription) -> None:
    config = make_config(
        target_length=131_072,
        formulas=FormulasConfig(methods=["linear", "yarn", "longrope"], temperatures=["paper"]),
        space=SpaceConfig(attention_temperature="none"),
    )
    found = [(factors.method, factors.attention_temperature) for factors in formula_factors(config, llama3)]
    longrope, yarn = math.sqrt(1 + math.log(16) / math.log(8192)), 0.1 * math.log(16) + 1
    assert [name for name, _ in found] == ["linear", "yarn", "yarn", "longrope", "longrope"]
    assert [temperature for _, temperature in found] == pytest.approx([1.0, yarn, 1.0, longrope, 1.0], rel=1e-14)


def test_the_temperature_of_the_search_is_always_among_the_formulas(llama3: ModelDescription) -> None:
    config = make_config(
        target_length=131_072,
        formulas=FormulasConfig(methods=["linear"], temperatures=["none"]),
        space=SpaceConfig(attention_temperature=1.4),
    )
    assert [factors.attention_temperature for factors in formula_factors(config, llama3)] == [1.0, 1.4]


@pytest.mark.parametrize("choice", ["hot", -1.0])
def test_an_impossible_temperature_is_refused(llama3: ModelDescription, choice: str | float) -> None:
    config = make_config(target_length=131_072, space=SpaceConfig(attention_temperature=choice))
    with pytest.raises(ValueError, match=r"^attention temperature must be "):
        formula_factors(config, llama3)


@pytest.mark.parametrize("temperatures", [[], ["best"]])
def test_formulas_without_a_temperature_are_refused(llama3: ModelDescription, temperatures: list[float | str]) -> None:
    with pytest.raises(ValueError, match=r"^formulas\.temperatures"):
        formula_factors(
            make_config(
                target_length=131_072,
                formulas=FormulasConfig(temperatures=temperatures),
                space=SpaceConfig(attention_temperature="best"),
            ),
            llama3,
        )


def test_lists_of_files_stand_beside_the_formulas_for_this_target_with_their_own_temperature(
    llama3: ModelDescription, tmp_path: Path
) -> None:
    published = json.loads((ORACLES / "longrope2_llama3_8b.json").read_text())["long_factor"]
    factors = RescaleFactors.from_list(
        published,
        rotary_dim=128,
        base=5e5,
        original_length=8192,
        target_length=131_072,
        attention_temperature=1.25,
    )
    replace(factors, short_values=(1.5,) * 64).save(tmp_path / "published.json")
    (tmp_path / "first").mkdir()
    linear_factors(128, 5e5, original_length=8192, target_length=65_536).save(tmp_path / "first" / "factors.json")
    files = [str(tmp_path / "published.json"), str(tmp_path / "first")]
    config = make_config(
        target_length=65_536, formulas=FormulasConfig(methods=["yarn"], temperatures=["none"], files=files)
    )
    *_, theirs, ours = formula_factors(config, llama3)
    assert (theirs.method, ours.method) == ("published", "first")
    assert theirs.values == tuple(published)
    assert theirs.attention_temperature == 1.25
    assert theirs.target_length == 65_536
    assert theirs.short is None  # a candidate of the search for the long window
    assert [factors.attention_temperature for factors in formula_factors(config, llama3, temperature=1.1)] == [1.1] * 3


def test_a_file_of_another_model_or_named_like_a_formula_is_refused(llama3: ModelDescription, tmp_path: Path) -> None:
    linear_factors(64, 5e5, original_length=8192, target_length=65_536).save(tmp_path / "other.json")
    linear_factors(128, 5e5, original_length=8192, target_length=65_536).save(tmp_path / "yarn.json")
    for name, message in (
        ("other", r"other\.json: rotary_dim must be 128, got 64"),
        ("yarn", r"^formulas\.files must not be named like a formula, got yarn\. Rename it"),
    ):
        config = make_config(target_length=65_536, formulas=FormulasConfig(files=[str(tmp_path / f"{name}.json")]))
        with pytest.raises(ValueError, match=message):
            formula_factors(config, llama3)


def test_the_best_formula_is_tried_warmer_than_yarn(llama3: ModelDescription) -> None:
    best = linear_factors(128, 5e5, original_length=8192, target_length=131_072)
    excess = 0.1 * math.log(16)
    assert [entry.attention_temperature for entry in warmer(best)] == pytest.approx(
        [1 + 1.5 * excess, 1 + 2 * excess, 1 + 2.5 * excess], rel=1e-14
    )
    assert {entry.values for entry in warmer(best)} == {best.values}


def test_a_budget_below_what_the_formulas_need_is_refused() -> None:
    counts = DocumentsConfig(num_search=4)
    check_budget(make_config(documents=counts, budget=13 * 4 + 1), 10)
    message = r"^--budget must be above the 52 forwards of 13 formulas on 4 documents each, got 52\. Raise it, or name "
    with pytest.raises(ValueError, match=message):
        check_budget(make_config(documents=counts, budget=52), 10)


@pytest.mark.parametrize(
    ("setting", "num_dims"),
    [({}, 65), ({"knots": 10}, 11), ({"free": "critical"}, 64 - 35 + 1), ({"free_temperature": False}, 64)],
)
def test_the_user_says_what_is_free(llama3: ModelDescription, setting: dict[str, Any], num_dims: int) -> None:
    config = make_config(algorithm="cmaes", target_length=131_072, monotone=MonotoneConfig(**setting))
    best = linear_factors(128, 5e5, original_length=8192, target_length=131_072).with_temperature(1.2)
    space = make_sampler(config, llama3, best).space
    assert isinstance(space, MonotoneSpace)
    assert space.num_dims == num_dims
    assert space.high == 64.0


@pytest.mark.parametrize(
    ("start", "method", "temperature"),
    [("best", "linear", 1.3), ("yarn", "yarn", 0.1 * math.log(16) + 1), ("ntk", "ntk-critical", 1.3)],
)
def test_the_user_says_where_the_search_starts(
    llama3: ModelDescription, start: str, method: str, temperature: float
) -> None:
    config = make_config(
        algorithm="tpe",
        target_length=131_072,
        monotone=MonotoneConfig(start=start),  # type: ignore[arg-type]
    )
    best = linear_factors(128, 5e5, original_length=8192, target_length=131_072).with_temperature(1.3)
    sampler = make_sampler(config, llama3, best)
    first = sampler.space.candidate(sampler.propose([]).params, method="first")
    expected = METHODS[method](128, 5e5, original_length=8192, target_length=131_072)
    np.testing.assert_allclose(first.values, expected.values, rtol=1e-4)  # coordinates have six digits
    assert first.attention_temperature == pytest.approx(temperature, abs=1e-6)


def test_a_spline_with_more_knots_than_pairs_is_refused(small: ModelDescription) -> None:
    best = linear_factors(32, 1e4, original_length=ORIGINAL, target_length=TARGET)
    with pytest.raises(ValueError, match=r"^monotone\.knots must be at most the model's 16 frequency pairs, got 17"):
        make_sampler(make_config(algorithm="gradient", monotone=MonotoneConfig(knots=17)), small, best)
