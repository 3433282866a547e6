"""Models as GGUF files in 32-bit floats, whose rounding hides nothing."""

from pathlib import Path

import gguf
import numpy as np

REFERENCE = Path(__file__).parents[2] / "workers/reference/model"
WINDOW = 256
ROTARY_DIM = 32
BASE = 500.0


def write_dequantised(source: Path, file: Path) -> None:
    """Write a copy of a GGUF model whose weights are the 32-bit floats that its blocks stand for."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=field.types[-1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
