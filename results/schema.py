"""The columns of stored measurements, with the version that a reader checks."""

import pyarrow as pa

SCHEMA_VERSION = 3
VERSION_KEY = b"ropewalk_schema_version"
"""Key of the version in the metadata of a Parquet file."""

MEASUREMENTS = pa.schema(
    [
        pa.field("candidate", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("depth", pa.float64(), nullable=False),
        pa.field("sum_nll", pa.float64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("failure", pa.string(), nullable=True),
        pa.field("gradient", pa.list_(pa.field("element", pa.float64(), nullable=False)), nullable=True),
        pa.field("flops", pa.float64(), nullable=True),
        pa.field("peak_bytes", pa.int64(), nullable=True),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
)
"""One row per (candidate, document): the fields of `Measurement`, in its order."""

OLDER = (
    pa.schema(list(MEASUREMENTS)[:8], metadata={VERSION_KEY: b"1"}),
    pa.schema(list(MEASUREMENTS)[:9], metadata={VERSION_KEY: b"2"}),
)
"""The same before there were gradients, in version 1, and before operations and memory were counted, in version 2."""


def check_version(schema: pa.Schema) -> None:
    """Refuse measurements that this version of Ropewalk may misread.

    Args:
        schema: Schema of a file.

    Raises:
        ValueError: The metadata has no version, or one that is neither this nor an older one.
    """
    found = (schema.metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
    if found not in ("1", "2", str(SCHEMA_VERSION)):
        raise ValueError(
            f"measurements must have schema version 1, 2 or {SCHEMA_VERSION}, got {found}. "
            "Read them with the version of Ropewalk that wrote them."
        )


def in_this_version(table: pa.Table) -> pa.Table:
    """Return a table of an older version with the columns of this one; any other table as it is.

    Args:
        table: What was read from a file.

    Returns:
        The table, without values in the columns that the older version lacks.
    """
    if not any(table.schema.equals(schema, check_metadata=True) for schema in OLDER):
        return table
    for field in list(MEASUREMENTS)[table.num_columns :]:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.cast(MEASUREMENTS)
