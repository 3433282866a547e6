"""The value that everything carries: what it keeps, what it refuses, how it comes back from a file."""

import json
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rope.factors import RescaleFactors, load_factors

GEOMETRY: dict[str, Any] = {"rotary_dim": 8, "base": 1e4, "original_length": 256, "target_length": 1024}


@pytest.fixture
def factors() -> RescaleFactors:
    """Factors with every field set, below 1 and not monotone as published ones may be."""
    return RescaleFactors(
        values=(0.9977997, 1 / 3, math.pi, 4.1),
        **GEOMETRY,
        critical_dim=2,
        attention_temperature=1.1180339887498949,
        num_start_tokens=4,
        method="searched",
        provenance={"seed": "7"},
    )


def test_json_gives_every_bit_back(factors: RescaleFactors) -> None:
    again = RescaleFactors.from_json(factors.to_json())
    assert again == factors
    assert again.provenance == factors.provenance
    assert [value.hex() for value in again.values] == [value.hex() for value in factors.values]
    assert again.to_json() == factors.to_json()


def test_the_json_s_keys_are_the_documented_ones(factors: RescaleFactors) -> None:
    document = json.loads(factors.to_json())
    assert document == {
        "schema_version": 1,
        "values": [0.9977997, 1 / 3, math.pi, 4.1],
        "rotary_dim": 8,
        "base": 10_000.0,
        "original_length": 256,
        "target_length": 1024,
        "critical_dim": 2,
        "attention_temperature": 1.1180339887498949,
        "num_start_tokens": 4,
        "short_values": None,
        "short_attention_temperature": 1.0,
        "method": "searched",
        "provenance": {"seed": "7"},
    }


def test_factors_of_the_original_window_come_back_too_and_are_factors_of_their_own(factors: RescaleFactors) -> None:
    assert factors.short is None
    dual = replace(factors, short_values=(1.1, 1.2, 1.3, 1.4), short_attention_temperature=1.19)
    assert RescaleFactors.from_json(dual.to_json()) == dual != factors
    short = dual.short
    assert short is not None
    assert (short.values, short.attention_temperature) == ((1.1, 1.2, 1.3, 1.4), 1.19)
    assert (short.num_start_tokens, short.critical_dim, short.short) == (0, None, None)


def test_a_temperature_of_the_original_window_alone_has_factors_of_1(factors: RescaleFactors) -> None:
    short = replace(factors, short_attention_temperature=1.19).short
    assert short is not None
    assert (short.values, short.attention_temperature) == ((1.0, 1.0, 1.0, 1.0), 1.19)


def test_a_file_of_before_there_were_factors_of_the_original_window_is_read(factors: RescaleFactors) -> None:
    document = json.loads(factors.to_json())
    del document["short_values"], document["short_attention_temperature"]
    assert RescaleFactors.from_json(json.dumps(document)) == factors


def test_equal_factors_hash_alike_and_provenance_counts_for_neither(factors: RescaleFactors) -> None:
    elsewhere = factors.with_provenance(seed="8", file="a.json")
    assert elsewhere == factors
    assert hash(elsewhere) == hash(factors)
    assert elsewhere.provenance == {"seed": "8", "file": "a.json"}
    assert {factors: 1}[elsewhere] == 1


def test_every_other_field_counts(factors: RescaleFactors) -> None:
    changes: list[dict[str, Any]] = [
        {"values": (1.0, 1.0, 1.0, 1.0)},
        {"base": 2e4},
        {"original_length": 128},
        {"target_length": 2048},
        {"critical_dim": None},
        {"attention_temperature": 1.0},
        {"num_start_tokens": 0},
        {"short_values": (1.0, 1.0, 1.0, 2.0)},
        {"short_attention_temperature": 1.1},
        {"method": "linear"},
    ]
    assert all(replace(factors, **change) != factors for change in changes)


def test_numpy_numbers_become_plain_ones(factors: RescaleFactors) -> None:
    from_numpy = RescaleFactors(
        values=np.array(factors.values),  # type: ignore[arg-type]  # an array is taken too
        rotary_dim=np.int64(8),  # type: ignore[arg-type]
        base=10_000,
        original_length=256,
        target_length=1024,
        critical_dim=np.int64(2),  # type: ignore[arg-type]
        attention_temperature=np.float64(factors.attention_temperature),
        num_start_tokens=4,
        method="searched",
    )
    assert from_numpy == factors
    assert hash(from_numpy) == hash(factors)
    assert from_numpy.to_json() == factors.to_json().replace('{\n    "seed": "7"\n  }', "{}")


def test_factors_travel_between_processes(factors: RescaleFactors) -> None:
    again = pickle.loads(pickle.dumps(factors))
    assert (again, again.provenance) == (factors, factors.provenance)


def test_scale_is_target_over_original(factors: RescaleFactors) -> None:
    assert factors.scale == 4.0


def test_with_temperature_changes_the_temperature_alone(factors: RescaleFactors) -> None:
    assert factors.with_temperature(1.5) == replace(factors, attention_temperature=1.5)


def test_with_values_keeps_the_model_the_temperature_and_the_provenance(factors: RescaleFactors) -> None:
    changed = factors.with_values(np.arange(1.0, 5.0), method="linear", critical_dim=1)
    assert (changed.values, changed.method, changed.critical_dim) == ((1.0, 2.0, 3.0, 4.0), "linear", 1)
    assert changed.num_start_tokens == 0
    assert changed.attention_temperature == factors.attention_temperature
    assert changed.provenance == factors.provenance


def test_a_file_comes_back_equal_and_leaves_nothing_else(factors: RescaleFactors, tmp_path: Path) -> None:
    path = tmp_path / "factors.json"
    path.write_text("older", encoding="utf-8")
    factors.save(path)
    assert RescaleFactors.load(path) == load_factors(path) == load_factors(str(path), **GEOMETRY) == factors
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_save_leaves_the_older_file_and_nothing_else(factors: RescaleFactors, tmp_path: Path) -> None:
    path = tmp_path / "factors.json"
    path.mkdir()  # a folder in the way: the last step, the replacing, fails
    with pytest.raises(OSError, match=r"factors\.json"):
        factors.save(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_published_list_loads_as_json_and_as_lines(oracle: Callable[[str], Any], tmp_path: Path) -> None:
    published = oracle("longrope_mistral_2048k")
    geometry = {"rotary_dim": 128, "base": 1e4, "original_length": 8192, "target_length": 2_097_152}
    (tmp_path / "list.json").write_text(json.dumps(published), encoding="utf-8")
    np.savetxt(tmp_path / "list.csv", published)
    from_json = load_factors(tmp_path / "list.json", **geometry)  # type: ignore[arg-type]
    assert from_json == load_factors(tmp_path / "list.csv", **geometry)  # type: ignore[arg-type]
    assert from_json == RescaleFactors.from_list(published, **geometry)  # type: ignore[arg-type]
    assert from_json.values == tuple(published)
    assert np.any(np.diff(from_json.values) < 0)
    assert (from_json.method, from_json.attention_temperature) == ("published", 1.0)
    assert from_json.provenance == {"file": "list.json"}


def test_a_list_for_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([1.0] * 64), encoding="utf-8")
    message = f"{path}: values must have 32 entries (rotary_dim 64 / 2), got 64. Was it made for another model?"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_factors(path, rotary_dim=64, base=1e4, original_length=256, target_length=512)


def test_a_bare_list_without_its_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1.0, 2.0]", encoding="utf-8")
    message = r"a bare list of factors must come with rotary_dim, .* got 4, None, None and 64\. Give all four\.$"
    with pytest.raises(ValueError, match=message):
        load_factors(path, rotary_dim=4, target_length=64)


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("rotary_dim", 64, "rotary_dim must be 64, got 8. Was it made for another model or window?"),
        ("base", 5e5, "base must be 500000.0, got 10000.0. Was it made for another model or window?"),
        ("original_length", 512, "original_length must be 512, got 256. Was it made for another model or window?"),
        ("target_length", 2048, "target_length must be 2048, got 1024. Was it made for another model or window?"),
    ],
)
def test_a_file_for_another_model_or_window_is_refused(
    name: str, wanted: Any, message: str, factors: RescaleFactors, tmp_path: Path
) -> None:
    path = tmp_path / "factors.json"
    factors.save(path)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {message}')}$"):
        load_factors(path, **{name: wanted})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"values": (1.0, 1.0)},
            r"^values must have 4 entries \(rotary_dim 8 / 2\), got 2\. Was it made for another model",
        ),
        ({"values": ()}, r"^values must have 4 entries \(rotary_dim 8 / 2\), got 0\."),
        ({"values": 1.0}, r"^values must be a list of numbers, got 1\.0\. Give one per frequency pair\."),
        ({"values": (1.0, math.nan, 1.0, 1.0)}, r"^values\[1\] must be a finite number above 0, got nan\."),
        ({"values": (1.0, 1.0, math.inf, 1.0)}, r"^values\[2\] must be a finite number above 0, got inf\."),
        ({"values": (1.0, 1.0, 1.0, 0.0)}, r"^values\[3\] must be a finite number above 0, got 0\.0\."),
        ({"values": (-2.0, 1.0, 1.0, 1.0)}, r"^values\[0\] must be a finite number above 0, got -2\.0\."),
        ({"values": ("1", 1.0, 1.0, 1.0)}, r"^values\[0\] must be a finite number above 0, got '1'\."),
        ({"rotary_dim": 7}, r"^rotary_dim must be even \(dimensions rotate in pairs\), got 7\."),
        ({"base": 1.0}, r"^base must be a finite number above 1, got 1\.0\."),
        ({"original_length": 0}, r"^original_length must be a whole number of at least 1, got 0\."),
        ({"target_length": 255}, r"^target_length must be at least original_length 256, got 255\. Ask for a longer"),
        ({"critical_dim": 4}, r"^critical_dim must be at most 3 \(rotary_dim 8 / 2 - 1\), got 4\."),
        ({"attention_temperature": 0.0}, r"^attention_temperature must be a finite number above 0, got 0\.0\."),
        ({"short_values": (1.0, 1.0)}, r"^short_values must have 4 entries \(rotary_dim 8 / 2\), got 2\."),
        ({"short_attention_temperature": -1.0}, r"^short_attention_temperature must be a finite number above 0, got"),
        ({"num_start_tokens": -1}, r"^num_start_tokens must be a whole number of at least 0, got -1\."),
        ({"method": ""}, r"^method must be a name, got ''\. Say what made the factors\."),
        (
            {"provenance": {"seed": 7}},
            r"^provenance must be texts by name, got {'seed': 7}\. Write its values as texts\.",
        ),
        ({"provenance": "me"}, r"^provenance must be texts by name, got 'me'\."),
    ],
)
def test_what_cannot_be_factors_is_refused(changes: dict[str, Any], message: str, factors: RescaleFactors) -> None:
    with pytest.raises(ValueError, match=message):
        replace(factors, **changes)
    document = {**json.loads(factors.to_json()), **changes}
    with pytest.raises(ValueError, match=message):
        RescaleFactors.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hello",
            r"^factors must be JSON, got text that is not: Expecting value: line 1 column 1 \(char 0\)\. Was the file",
        ),
        (
            "[1.0]",
            r"^factors must be a JSON object with schema_version 1, got \[1\.0\]\. Give a file that this version",
        ),
        ("{}", r"^factors must be a JSON object with schema_version 1, got None\. Give a file that this version"),
        ('{"schema_version": 2}', r"^factors must be a JSON object with schema_version 1, got 2\. Give a file that"),
        (
            '{"schema_version": 1, "long_factor": []}',
            r"^factors must have known keys only, got \['long_factor'\]\. Known are values, .*, provenance\.",
        ),
        (
            '{"schema_version": 1, "values": [], "base": 2}',
            r"^factors must have values, rotary_dim, base, original_length, target_length, method, "
            r"got no rotary_dim, original_length, target_length, method\. Add them\.",
        ),
    ],
)
def test_a_text_that_is_no_factors_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        RescaleFactors.from_json(text)
    path = tmp_path / "factors.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: factors must [^\n]*$"):
        RescaleFactors.load(path)


def test_a_missing_file_is_refused_once(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    for load in (RescaleFactors.load, load_factors):
        with pytest.raises(
            ValueError, match=f"^{re.escape(str(path))}: factors must be in a readable file, got: No such"
        ):
            load(path)
