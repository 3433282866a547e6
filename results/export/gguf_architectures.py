"""Which architectures' graphs in llama.cpp rotate with two lists of factors, and why the others do not.

Source: ggml-org/llama.cpp 0c1e57098, as in llama-cpp-python 0.3.36: `src/models/*.cpp`, `get_rope_factors`.
"""

READ_BOTH_LISTS = (
    "llama",
    "llama-embed",
    "deci",
    "mistral3",
    "apertus",
    "granite",
    "granitemoe",
    "granite_swa",
    "minicpm",
    "minicpm3",
    "phi3",
    "phimoe",
)
"""The graph takes the long list where the context is longer than the original window, else the short one."""

READ_ONE_LIST = (
    "arcee",
    "dflash",
    "eagle3",
    "exaone",
    "exaone-moe",
    "exaone4",
    "gemma4",
    "gemma4-assistant",
    "granitehybrid",
    "llama4",
    "nanbeige",
)
"""The graph takes rope_freqs, one list for every length, and no other."""

READ_IN_VAIN = ("pangu-embedded", "refact")
"""The file would load, and the graph leave the lists aside."""

ROTATE_BY_LAYER = ("step35",)
"""The graph takes the lists in some of its layers, which rotate otherwise than the rest."""


def check_architecture(architecture: str) -> None:
    """Refuse an architecture that would not rotate with two lists.

    Args:
        architecture: `general.architecture` of a GGUF file.

    Raises:
        ValueError: Its graph takes no factors, one list only, or leaves them aside.
    """
    if architecture in READ_BOTH_LISTS:
        return
    if architecture in READ_IN_VAIN:
        reason = "which loads the lists and rotates without them, silently"
    elif architecture in READ_ONE_LIST:
        reason = "whose graph takes one list for all lengths only"
    elif architecture in ROTATE_BY_LAYER:
        reason = "whose layers do not all rotate alike"
    else:
        reason = "whose graph gives no factors to RoPE, so that llama.cpp would not load the file"
    raise ValueError(
        f"the GGUF's architecture must be one that llama.cpp rotates with long and short factors "
        f"({', '.join(READ_BOTH_LISTS)}), got {architecture or 'none'}, {reason}. "
        "Serve the model with another engine: `ropewalk export --to vllm` or `--to sglang`."
    )
