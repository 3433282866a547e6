"""Which accelerators this process uses, told without loading torch where nothing else has."""

import sys
from typing import NamedTuple


class Accelerator(NamedTuple):
    """One device."""

    name: str
    """What it is called, as "NVIDIA H200"."""
    uuid: str
    """Tells it from every other one of the cluster."""


def accelerators_in_use() -> tuple[Accelerator, ...]:
    """Return the CUDA devices on which this process holds memory; empty on a CPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ()
    properties = [
        torch.cuda.get_device_properties(device)
        for device in range(torch.cuda.device_count())
        if torch.cuda.memory_reserved(device) > 0
    ]
    return tuple(Accelerator(device.name, str(device.uuid)) for device in properties)
