"""A model is copied without being in memory, in a process whose memory is measured."""

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from rope.factors import RescaleFactors

FACTORS = RescaleFactors(
    values=(1.0, 1.1, 2.7, 4.3), rotary_dim=8, base=5e5, original_length=512, target_length=2048, method="by hand"
)
PROGRAM = """
import resource, sys
from pathlib import Path
from results.export.gguf_file import write_gguf
from rope.factors import RescaleFactors
source, target, text = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_gguf(Path(source), Path(target), RescaleFactors.from_json(text), "dual", force=False, in_place=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does, in KB")
def test_copying_a_model_takes_a_fraction_of_its_size_in_memory(tmp_path: Path) -> None:
    num_bytes = 1 << 28  # a hole; far more than a chunk, and little enough to be written in seconds
    writer = gguf.GGUFWriter(tmp_path / "large.gguf", "llama")
    writer.add_rope_freq_base(FACTORS.base)
    writer.add_rope_dimension_count(FACTORS.rotary_dim)
    for name in ("first.weight", "last.weight"):
        writer.add_tensor_info(name, (num_bytes // 8,), np.dtype(np.float32), num_bytes // 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with (tmp_path / "large.gguf").open("r+b") as file:
        file.seek(0, 2)
        file.truncate(-(-file.tell() // 32) * 32 + num_bytes)
    target = tmp_path / "scaled.gguf"
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "large.gguf"), str(target), FACTORS.to_json()],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    size, used = target.stat().st_size, int(finished.stdout) * 1024
    target.unlink()
    assert size > num_bytes
    assert used < num_bytes / 4
