"""GGUF as a container: the keys and tensors of a file, and a copy of the file in which some of them are others."""

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, NamedTuple

import gguf
import numpy as np

CHUNK = 1 << 24
"""Bytes of tensor data that are in memory at a time."""
Value = str | int | float
"""What a key holds; a new key is written as a string, a 32-bit unsigned integer, or a 32-bit float."""
BEGINNING = struct.Struct("<IIQQ")
"""Magic number, version, number of tensors, number of keys."""


class Tensor(NamedTuple):
    """One tensor of a file, as its header describes it."""

    name: str
    """Unique in the file."""
    dims: tuple[int, ...]
    """Entries per dimension, the fastest one first."""
    type: int
    """Number of its data type in ggml."""
    offset: int
    """Where its data begins, bytes from the beginning of the file."""
    num_bytes: int
    """Size of its data."""


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """The header of a GGUF file; tensor data stays on the disk."""

    path: Path
    """The file."""
    version: int
    """Version of the format, 2 or 3."""
    alignment: int
    """Tensor data begins at multiples of it, bytes."""
    architecture: str
    """`general.architecture`, by which llama.cpp chooses its graph."""
    values: Mapping[str, Value]
    """What the keys hold; arrays are left out."""
    packed_keys: Mapping[str, bytes]
    """Every key with its type and value, as the file has them."""
    tensors: Mapping[str, Tensor]
    """The tensors by name, in the order of their data."""

    def value(self, key: str) -> Value | None:
        """Return what a key of the architecture holds.

        Args:
            key: Name without the architecture: "rope.freq_base" for "llama.rope.freq_base".

        Returns:
            The value; None where there is no such key, or it holds an array.
        """
        return self.values.get(f"{self.architecture}.{key}")

    def number(self, key: str) -> float | None:
        """Return the number that a key of the architecture holds.

        Args:
            key: As in `value`.

        Returns:
            The number; None where there is no such key, or it holds something else.
        """
        value = self.value(key)
        return value if isinstance(value, int | float) else None

    def float_list(self, name: str) -> tuple[float, ...] | None:
        """Return a tensor of one dimension in 32-bit floats.

        Args:
            name: The tensor's.

        Returns:
            Its entries, exactly; None where there is no such tensor.

        Raises:
            ValueError: The tensor has more dimensions or another type.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        if len(tensor.dims) != 1 or tensor.type != gguf.GGMLQuantizationType.F32:
            raise ValueError(
                f"{self.path}: {name} must be one list of 32-bit floats, got {len(tensor.dims)} dimension(s) of "
                f"{gguf.GGMLQuantizationType(tensor.type).name}. llama.cpp stops at such a file; write its lists anew."
            )
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            return tuple(np.frombuffer(file.read(tensor.num_bytes), dtype="<f4").tolist())


def open_gguf(path: Path) -> GgufFile:
    """Return the header of a GGUF file, having checked that the file is whole.

    Args:
        path: File to read.

    Returns:
        Keys and tensors.

    Raises:
        ValueError: The file cannot be read, is no GGUF, is big-endian, truncated, damaged, of a version or data type
            that the gguf package does not know, or one part of several.
    """
    _check_beginning(path)
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{path}: the file must be a whole GGUF that gguf {version('gguf')} knows, got one that cannot be read to "
            f"its end ({error}). Was its download cut off? Fetch it again."
        ) from error
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    values = {name: field.contents() for name, field in fields.items() if field.types[0] != gguf.GGUFValueType.ARRAY}
    if values.get(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, 0) > 1:
        raise ValueError(
            f"{path}: the GGUF must be one file, got one of {values[gguf.Keys.Split.LLM_KV_SPLIT_COUNT]} parts. "
            "Merge them first: llama-gguf-split --merge FIRST-PART WHOLE."
        )
    return GgufFile(
        path=path,
        version=int(reader.fields["GGUF.version"].contents()),
        alignment=int(reader.alignment),
        architecture=str(values.get(gguf.Keys.General.ARCHITECTURE, "")),
        values=values,
        packed_keys={
            name: reader.data[field.offset : field.offset + sum(part.nbytes for part in field.parts)].tobytes()
            for name, field in fields.items()
        },
        tensors={
            tensor.name: Tensor(
                tensor.name,
                tuple(int(count) for count in tensor.shape),
                int(tensor.tensor_type),
                int(tensor.data_offset),
                int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        },
    )


def copy_size(source: GgufFile) -> int:
    """Return about how many bytes a copy needs: the source's and a little.

    Args:
        source: File that will be copied.

    Returns:
        Bytes.
    """
    return source.path.stat().st_size + CHUNK


def write_copy(
    source: GgufFile,
    target: Path,
    *,
    without: Collection[str],
    keys: Mapping[str, Value],
    tensors: Mapping[str, tuple[float, ...]],
) -> None:
    """Write a GGUF file with other keys and tensors; whatever stays is copied byte for byte, a chunk at a time.

    Not atomic: for a temporary path. The keys that stay are not written through `gguf.GGUFWriter`, which refuses
    empty arrays and flattens nested ones.

    Args:
        source: File to copy from; it must not change meanwhile.
        target: File to write; another one than the source.
        without: Keys and tensors that are left out.
        keys: Keys to add or to replace.
        tensors: Lists to add or to replace, written as 32-bit floats.

    Raises:
        ValueError: The source changed while it was copied.
        OSError: The target cannot be written, or the disk is full.
    """
    packed_keys = [
        packed for name, packed in source.packed_keys.items() if name not in without and name not in keys
    ] + [_string(name) + _packed_value(value) for name, value in keys.items()]
    kept = [tensor for name, tensor in source.tensors.items() if name not in without and name not in tensors]
    lists = {name: np.asarray(values, dtype="<f4").tobytes() for name, values in tensors.items()}
    infos, offset = [], 0
    for tensor in [*kept, *(_list_tensor(name, data) for name, data in lists.items())]:
        infos.append(_packed_info(tensor, offset))
        offset += _padded(tensor.num_bytes, source.alignment)
    header = BEGINNING.pack(gguf.GGUF_MAGIC, source.version, len(infos), len(packed_keys))
    header += b"".join([*packed_keys, *infos])
    with source.path.open("rb") as old, target.open("wb") as new:
        _write_padded(new, header, source.alignment)
        size = new.tell() + offset
        for tensor in kept:
            _copy(old, new, tensor)
            _write_padded(new, b"", source.alignment)
        for data in lists.values():
            _write_padded(new, data, source.alignment)
        if new.tell() != size:
            raise ValueError(
                f"{source.path}: the file must stay as it is while it is copied, got a shorter one. Retry."
            )


def _check_beginning(path: Path) -> None:
    try:
        with path.open("rb") as file:
            beginning = file.read(BEGINNING.size)
    except OSError as error:
        raise ValueError(f"{path}: the GGUF must be a readable file, got: {error.strerror}. Check the path.") from error
    if beginning[:4] != struct.pack("<I", gguf.GGUF_MAGIC):
        raise ValueError(f"{path}: a GGUF file must begin with 'GGUF', got {beginning[:4]!r}. Give a .gguf file.")
    if len(beginning) == BEGINNING.size:
        _, number, num_tensors, num_keys = BEGINNING.unpack(beginning)
        if number & 0xFFFF == 0:
            raise ValueError(f"{path}: the GGUF must be little-endian, got a big-endian one. Convert the model anew.")
        # The reader counts up to what it is told, however short the file is.
        if max(num_tensors, num_keys) < path.stat().st_size:
            return
    raise ValueError(f"{path}: the GGUF must be whole, got one whose header is damaged or cut off. Fetch it again.")


def _copy(old: BinaryIO, new: BinaryIO, tensor: Tensor) -> None:
    old.seek(tensor.offset)
    for start in range(0, tensor.num_bytes, CHUNK):
        new.write(old.read(min(CHUNK, tensor.num_bytes - start)))


def _write_padded(file: BinaryIO, data: bytes, alignment: int) -> None:
    file.write(data)
    file.write(bytes(_padded(file.tell(), alignment) - file.tell()))


def _padded(num_bytes: int, alignment: int) -> int:
    return -(-num_bytes // alignment) * alignment


def _list_tensor(name: str, data: bytes) -> Tensor:
    return Tensor(name, (len(data) // 4,), gguf.GGMLQuantizationType.F32, 0, len(data))


def _packed_info(tensor: Tensor, offset: int) -> bytes:
    num_dims = len(tensor.dims)
    return _string(tensor.name) + struct.pack(f"<I{num_dims}QIQ", num_dims, *tensor.dims, tensor.type, offset)


def _packed_value(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", gguf.GGUFValueType.STRING) + _string(value)
    if isinstance(value, int):
        return struct.pack("<II", gguf.GGUFValueType.UINT32, value)
    return struct.pack("<If", gguf.GGUFValueType.FLOAT32, value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
