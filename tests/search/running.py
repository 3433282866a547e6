"""What the tests of whole runs share: the reference model, small settings, an interruption at a chosen moment."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "workers/reference/model")
HAYSTACK = str(ROOT / "workers/reference/tom_sawyer.txt")
TINY = [
    "--documents.num-search=6",
    "--documents.num-heldout=6",
    "--documents.num-original=4",
    "--documents.num-validation=4",
    "--formulas.methods=[none, yarn, longrope2]",
    "--formulas.temperatures=[paper]",
    "--schedule=generational",
]


def interrupt_after(num_forwards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt, as Ctrl-C does, the forward beyond the window that comes after so many."""
    forward, calls = LlamaForCausalLM.forward, iter(range(100_000))

    def interrupted(model: LlamaForCausalLM, input_ids: torch.Tensor, **options: Any) -> object:
        if input_ids.shape[1] >= 512 and next(calls) == num_forwards:
            raise KeyboardInterrupt
        return forward(model, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", interrupted)
