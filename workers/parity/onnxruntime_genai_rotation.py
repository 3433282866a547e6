"""ONNX Runtime GenAI's rotation: the tables that its model builder writes into the graph, by methods cut out of it.

Which table an input takes is decided by an If node of the graph (total length above the original one), which is not
run here; the builder's source says so.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from workers.parity.model_config import head_dim, read_config
from workers.parity.probe import Probe, Rotation
from workers.parity.source import cut


def rotate(probe: Probe) -> list[Rotation]:
    """Return the rows of the table that the graph would take for each input.

    Args:
        probe: What it is asked; a Phi-3 model, the only ones whose builder writes both tables.

    Returns:
        One rotation per input.
    """
    config = read_config(probe.config)
    builder = _builder(Path(probe.root, "models/builders"))
    builder.context_length = config.max_position_embeddings
    builder.original_context_length = config.original_max_position_embeddings
    builder.head_size = head_dim(config)
    parameters: Any = config.rope_parameters
    builder.rope_attrs = {
        "mscale": 1,
        "mscale_policy": "",
        "theta": parameters["rope_theta"],
        "partial_rotary_factor": probe.rotary_dim / builder.head_size,
        "rescale_factors": 1,
        "t_dtype": torch.int64,
        "position_scale": 1,
        "cache_length": builder.context_length,
    }
    builder.make_rope_init(config)
    return [_rows(builder, positions, probe.rotary_dim // 2) for positions in probe.inputs]


def _rows(builder: Any, positions: tuple[int, ...], num_pairs: int) -> Rotation:
    is_long = positions[-1] + 1 > builder.original_context_length
    name = "long" if is_long else "short"
    caches = builder.rope_attrs["multi_cache"]
    builder.rope_attrs["rescale_factors"] = caches[f"{name}_factor"]
    builder.rope_attrs["mscale"] = caches[f"{name}_mscale"]
    builder.rope_attrs["cache_length"] = positions[-1] + 1
    cos_TD, sin_TD = builder.make_rotary_embedding_caches_from_scratch()
    rows = list(positions)
    return Rotation(cos_TD[rows, :num_pairs].tolist(), sin_TD[rows, :num_pairs].tolist())


def _builder(folder: Path) -> Any:
    known: dict[str, object] = {"np": np, "torch": torch}
    names = ["make_mscale_su", "make_mscale_yarn", "make_mscale", "make_rotary_embedding_caches_from_scratch"]
    methods = {name: cut(folder / "base.py", names, known, inside="Model")[name] for name in names}
    methods |= cut(folder / "phi.py", ["make_rope_init"], known, inside="Phi3MiniLongRoPEModel")
    return type("Builder", (SimpleNamespace,), {name: methods[name] for name in [*names, "make_rope_init"]})()
