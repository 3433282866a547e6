import json

import numpy as np
import pytest

from results.export.engine import Mode, SourceModel
from results.export.transformers_config import export_transformers
from results.parity import ParityRow
from rope.factors import RescaleFactors
from tests.workers.parity.rotations import (
    BASE,
    LONG,
    ORIGINAL,
    ROTARY_DIM,
    SHORT,
    TARGET,
    TEMPERATURE,
    by_hand,
    factors_of,
)
from workers.parity.engines import PARITY_ENGINES
from workers.parity.model_config import made_up_config
from workers.parity.packages import EnginePackage, installed_package
from workers.parity.probe import Probe, Rotation
from workers.parity.transformers_rotation import own_rotation, rotate
from workers.parity.verification import verify_engine, windows


def model(architecture: str = "llama") -> SourceModel:
    config = made_up_config(architecture, rotary_dim=ROTARY_DIM, base=BASE, original_length=ORIGINAL)
    return SourceModel(name="MODEL", config=config, model_type=architecture, partial_rotary_factor=None)


def exported(factors: RescaleFactors, mode: Mode = "dual", architecture: str = "llama") -> dict[str, object]:
    config: dict[str, object] = json.loads(export_transformers(factors, mode, model(architecture)).files["config.json"])
    return config


def package() -> EnginePackage:
    found = installed_package("transformers", "transformers")
    assert found is not None
    return found


def verified(config: dict[str, object], factors: RescaleFactors, mode: Mode = "dual") -> list[ParityRow]:
    return verify_engine(
        "transformers",
        PARITY_ENGINES["transformers"],
        package(),
        factors,
        config=config,
        overrides={},
        expected=windows(factors, mode, model().config, scaling="default"),
        folder=None,
    )


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_what_is_read_off_transformers_is_what_arithmetic_gives(architecture: str) -> None:
    inputs = ((0, 1, ORIGINAL - 1, ORIGINAL), (0, 1, ORIGINAL - 1))
    probe = Probe(
        root="",
        config=exported(factors_of(), architecture=architecture),
        overrides={},
        rotary_dim=ROTARY_DIM,
        server_length=TARGET,
        inputs=inputs,
    )
    long, short = rotate(probe)
    for found, values, positions in ((long, LONG, inputs[0]), (short, SHORT, inputs[1])):
        expected = by_hand(values, TEMPERATURE, positions)  # transformers multiplies both windows
        # float32 angles up to 256 are right to 256 * 2^-24 * 5
        np.testing.assert_allclose(found.cos, expected.cos, atol=1e-4)
        np.testing.assert_allclose(found.sin, expected.sin, atol=1e-4)


def test_transformers_is_the_same_beyond_the_border_and_applies_one_temperature_inside() -> None:
    rows = verified(exported(factors_of()), factors_of())
    assert [row.num_tokens for row in rows] == [ORIGINAL, ORIGINAL + 1, TARGET]
    assert [row.factors for row in rows] == ["short", "long", "long"]
    inside = "differs: cos and sin times 1.1180 instead of 1.0000 (one temperature for both windows)"
    assert [row.verdict for row in rows] == [inside, "same", "same"]


def test_transformers_is_the_same_at_temperature_1_and_with_pinned_factors() -> None:
    plain = factors_of(1.0)
    assert {row.verdict for row in verified(exported(plain), plain)} == {"same"}
    assert {row.verdict for row in verified(exported(factors_of(), "pinned"), factors_of(), "pinned")} == {"same"}


def test_a_configuration_with_the_factors_in_reversed_order_is_found() -> None:
    config = exported(factors_of(1.0))
    for name in ("rope_scaling", "rope_parameters"):
        config[name]["long_factor"] = LONG[::-1]  # type: ignore[index]
    rows = verified(config, factors_of(1.0))
    assert [row.factors for row in rows] == ["short", "neither", "neither"]
    assert [row.differs for row in rows] == [False, True, True]


def test_a_configuration_without_the_temperature_is_found() -> None:
    config = exported(factors_of(1.3))
    for name in ("rope_scaling", "rope_parameters"):
        del config[name]["attention_factor"]  # type: ignore[attr-defined]
    # transformers then takes LongRoPE's own for 4x: 1.1180
    assert verified(config, factors_of(1.3))[-1].verdict == "differs: cos and sin times 1.1180 instead of 1.3000"


def test_a_configuration_that_transformers_refuses_is_not_verified() -> None:
    row = verified({"model_type": "no such"}, factors_of())[0]
    assert row.verdict.startswith("not verified here: ValueError: ")
    assert not row.differs


def test_a_model_with_a_scaling_of_its_own_should_keep_it_inside_its_window() -> None:
    config = {**model().config, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    inv_freq, temperature = own_rotation(config, ORIGINAL)
    # Position interpolation by 2 halves every frequency; float32 has 24 bits
    np.testing.assert_allclose(inv_freq, [0.5 / BASE ** (pair / 32) for pair in range(32)], rtol=1e-6)
    assert temperature == 1.0
    short = windows(factors_of(), "dual", config, scaling="linear").short
    np.testing.assert_array_equal(short.inv_freq, inv_freq)


def test_rotations_cross_a_process_as_they_are() -> None:
    probe = Probe(
        root="a", config={"b": [1.5]}, overrides={}, rotary_dim=2, server_length=3, inputs=((0, 1), (0, 1, 7))
    )
    assert Probe.from_json(probe.to_json()) == probe
    assert Rotation([[1.0]], [[0.0]]).inv_freq is None
