"""The columns of stored measurements."""

from dataclasses import fields

import pyarrow as pa
import pytest

from results.measurement import Measurement
from results.schema import MEASUREMENTS, check_version


def test_the_columns_are_the_fields_of_a_measurement() -> None:
    assert MEASUREMENTS.names == [field.name for field in fields(Measurement)]


def test_only_a_failure_and_a_gradient_may_be_missing() -> None:
    assert [field.name for field in MEASUREMENTS if field.nullable] == ["failure", "gradient"]


def test_a_schema_without_its_version_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^measurements must have schema version 1 or 2, got none\. Read them with .*$"
    ):
        check_version(pa.schema([]))
