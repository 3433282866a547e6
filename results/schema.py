"""The columns of stored measurements, with the version that a reader checks."""

import pyarrow as pa

SCHEMA_VERSION = 1
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
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
)
"""One row per (candidate, document): the fields of `Measurement`, in its order."""


def check_version(schema: pa.Schema) -> None:
    """Refuse measurements that this version of Ropewalk did not write and may misread.

    Args:
        schema: Schema of a file.

    Raises:
        ValueError: The metadata has no version, or another one.
    """
    found = (schema.metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
    if found != str(SCHEMA_VERSION):
        raise ValueError(
            f"measurements must have schema version {SCHEMA_VERSION}, got {found}. "
            "Read them with the version of Ropewalk that wrote them."
        )
