"""The columns of stored measurements."""

from dataclasses import fields

import pyarrow as pa
import pytest

from results.measurement import Measurement
from results.schema import MEASUREMENTS, check_version


def test_the_columns_are_the_fields_of_a_measurement() -> None:
    assert MEASUREMENTS.names == [field.name for field in fields(Measurement)]


def test_what_not_every_measurement_has_may_be_missing() -> None:
    assert [field.name for field in MEASUREMENTS if field.nullable] == ["failure", "gradient", "flops", "peak_bytes"]


def test_a_schema_without_its_version_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^measurements must have schema version 1, 2 or 3, got none\. Read them with .*$"
    ):
        check_version(pa.schema([]))
