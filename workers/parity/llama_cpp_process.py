"""A program that reads a prompt with llama.cpp and writes the logits of its last tokens; it needs no torch.

A GGUF that llama.cpp dislikes ends its process, and so this one.
"""

import importlib
import json
import sys
from typing import Any

import numpy as np

FLOAT32_CACHE = 0
"""GGML_TYPE_F32: keys and values are not rounded to float16."""


def main() -> None:
    """Answer the question at the standard input; the logits go to the file that it names."""
    question: dict[str, Any] = json.loads(sys.stdin.read())
    llama_cpp: Any = importlib.import_module("llama_cpp")
    llama = llama_cpp.Llama(
        question["gguf"],
        n_ctx=question["context_length"],
        n_gpu_layers=0,
        type_k=FLOAT32_CACHE,
        type_v=FLOAT32_CACHE,
        verbose=False,
    )
    ids, num_last = question["ids"], question["num_last"]
    rows = []
    llama.eval(ids[: len(ids) - num_last])
    for token in ids[len(ids) - num_last :]:
        llama.eval([token])
        # `Llama.scores` is stale here: it is kept for all tokens or for none
        logits = llama_cpp.llama_get_logits_ith(llama._ctx.ctx, -1)
        rows.append(np.ctypeslib.as_array(logits, (llama.n_vocab(),)).copy())
    np.save(question["output"], np.array(rows, dtype=np.float32))
    sys.stdout.write(f"\n{llama.n_ctx()}\n")


if __name__ == "__main__":
    main()
