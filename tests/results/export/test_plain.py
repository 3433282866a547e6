"""The plain export: every bit comes back, and the schema says what factors.json may hold."""

import json
from dataclasses import replace

import numpy as np
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from results.export.plain import export_plain, schema_text
from rope.factor_files import number_lines
from rope.factors import RescaleFactors
from tests.results.export.examples import FACTORS, published_llama3

THIRDS = replace(FACTORS, values=tuple(1.0 + pair / 3 for pair in range(8)), short_values=(1.0,) * 7 + (1.0 + 2**-52,))


def test_a_program_of_ones_own_gets_every_bit_back_from_the_lines() -> None:
    files = export_plain(THIRDS, "dual", None).files
    assert [float(line) for line in files["long_factors.csv"].split("\n")[:-1]] == list(THIRDS.values)
    assert np.array_equal(np.loadtxt(files["short_factors.csv"].splitlines()), np.array(THIRDS.short_values))
    assert RescaleFactors.from_json(files["factors.json"]) == THIRDS


def test_the_published_list_stays_as_it_was_published() -> None:
    published = published_llama3()
    files = export_plain(published, "dual", None).files
    assert sorted(files) == ["factors.json", "factors.schema.json", "long_factors.csv"]
    assert tuple(number_lines(files["long_factors.csv"])) == published.values
    assert RescaleFactors.from_json(files["factors.json"]) == published


def test_pinned_says_the_long_list_and_temperature_for_both_windows() -> None:
    files = export_plain(THIRDS, "pinned", None).files
    assert files["short_factors.csv"] == files["long_factors.csv"]
    read = RescaleFactors.from_json(files["factors.json"])
    assert read.short_values == read.values == THIRDS.values
    assert read.short_attention_temperature == THIRDS.attention_temperature


def validator() -> Draft202012Validator:
    schema = json.loads(schema_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize(
    "factors",
    [FACTORS, THIRDS, published_llama3(), replace(FACTORS, num_start_tokens=4, provenance={"model": "x"})],
)
def test_what_to_json_writes_is_valid(factors: RescaleFactors) -> None:
    validator().validate(json.loads(factors.to_json()))


@pytest.mark.parametrize(
    "change",
    [
        {"values": []},
        {"values": [1.0, 0.0]},
        {"values": [1.0, "2"]},
        {"rotary_dim": 15},
        {"rotary_dim": 16.5},
        {"base": 1.0},
        {"original_length": 0},
        {"target_length": "128"},
        {"critical_dim": -1},
        {"attention_temperature": 0.0},
        {"num_start_tokens": -1},
        {"short_values": [-1.0]},
        {"short_attention_temperature": None},
        {"method": ""},
        {"provenance": {"seed": 0}},
        {"schema_version": 2},
        {"unknown": 1},
    ],
    ids=str,
)
def test_what_the_schema_refuses_from_json_refuses_too(change: dict[str, object]) -> None:
    document = {**json.loads(FACTORS.to_json()), **change}
    assert not validator().is_valid(document)
    with pytest.raises(ValueError):
        RescaleFactors.from_json(json.dumps(document))


def test_what_must_be_there_in_the_schema_must_be_there_for_from_json() -> None:
    whole = json.loads(FACTORS.to_json())
    for name in whole:
        document = {key: value for key, value in whole.items() if key != name}
        if validator().is_valid(document):
            RescaleFactors.from_json(json.dumps(document))
        else:
            with pytest.raises(ValueError):
                RescaleFactors.from_json(json.dumps(document))
