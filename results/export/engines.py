"""ENGINES: every engine that factors are exported to, what it chooses when, what is lost, what to type."""

from results.export.engine import Engine
from results.export.exllamav2 import export_exllamav2
from results.export.exllamav3 import export_exllamav3
from results.export.mlx import export_mlx
from results.export.onnxruntime_genai import export_onnxruntime_genai
from results.export.plain import export_plain
from results.export.sglang import export_sglang
from results.export.tensorrt_llm import export_tensorrt_llm
from results.export.transformers_config import export_transformers
from results.export.vllm import export_vllm

ENGINES: dict[str, Engine] = {
    "transformers": Engine(
        title="transformers",
        export=export_transformers,
        chooses="per forward: long where the longest row of the batch exceeds the original length",
        loses="temperature 1 in the short window; `generate()` mixes both rotations in the cache at the border "
        "(not Phi-3); `--short-temperature patch` mends both",
        typed='`from_pretrained("DIR")`',
        version="4.57, 5.23",
    ),
    "vllm": Engine(
        title="vLLM",
        export=export_vllm,
        chooses="at the start: long where `--max-model-len` exceeds the original length",
        loses="the short window of a long server",
        typed="`vllm serve` with `--max-model-len` and `--hf-overrides`, printed whole",
        version="0.33",
        always_long=True,
    ),
    "sglang": Engine(
        title="SGLang",
        export=export_sglang,
        chooses="per batch: long where one position lies beyond the original length",
        loses="texts mix both rotations in the cache at the border; "
        "the token at it turns as at position 0, in pinned too",
        typed="`sglang.launch_server` with `--json-model-override-args`, printed whole",
        version="0.5.23",
    ),
    "llama.cpp": Engine(
        title="llama.cpp",
        export=None,
        chooses="per context: long where `-c` exceeds the original length",
        loses="the short window of a long context; temperature 1 in the short one; qwen2, qwen3, gemma3 (refused)",
        typed="`llama-server -m FILE.gguf -c TARGET`",
        version="as in llama-cpp-python 0.3.36",
        always_long=True,
    ),
    "ollama": Engine(
        title="Ollama",
        export=None,
        chooses="as llama.cpp, by `num_ctx`",
        loses="as llama.cpp",
        typed="`ollama create NAME -f DIR/Modelfile`",
        version="(not run)",
        always_long=True,
    ),
    "mlx": Engine(
        title="MLX (mlx-lm)",
        export=export_mlx,
        chooses="always long",
        loses="the short window; temperatures below 1",
        typed="`mlx_lm.generate --model DIR`",
        version="0.32.2",
        always_long=True,
    ),
    "exllamav2": Engine(
        title="ExLlamaV2",
        export=export_exllamav2,
        chooses="when it loads: long where the length it is loaded with exceeds the original length",
        loses="the short window of a long load; temperatures below the formula's",
        typed="`-l WINDOW`, printed: the temperature depends on it",
        version="0.3.2",
        always_long=True,
    ),
    "exllamav3": Engine(
        title="ExLlamaV3",
        export=export_exllamav3,
        chooses="always long",
        loses="the short window; temperatures below the formula's",
        typed="load `DIR`",
        version="1.6.5",
        always_long=True,
    ),
    "onnxruntime-genai": Engine(
        title="ONNX Runtime GenAI",
        export=export_onnxruntime_genai,
        chooses="per step: long where more tokens than the original length were read",
        loses="every architecture but Phi-3 (refused); texts mix both rotations in the cache at the border",
        typed="`python -m onnxruntime_genai.models.builder -m DIR`",
        version="0.18",
    ),
    "tensorrt-llm": Engine(
        title="TensorRT-LLM",
        export=export_tensorrt_llm,
        chooses="at the start: long where `--max_seq_len` exceeds the original length",
        loses="the short window of a long server; temperatures below the formula's",
        typed="`trtllm-serve DIR --max_seq_len TARGET`",
        version="main, late 2026 (not run)",
        always_long=True,
    ),
    "plain": Engine(
        title="your own",
        export=export_plain,
        chooses="as you write it",
        loses="nothing",
        typed="read `long_factors.csv`, or `factors.json` by `rope/factors.schema.json`",
        version="",
    ),
}


def known_engine(name: str) -> Engine:
    """Return an engine by its name.

    Args:
        name: As the user gave it.

    Raises:
        ValueError: There is no such engine.
    """
    if name not in ENGINES:
        raise ValueError(f"--to must be one of {', '.join(ENGINES)}, got {name!r}. Correct it.")
    return ENGINES[name]


def markdown_table() -> str:
    """Return the table of the README, ending in a line break."""
    lines = [
        "| `--to` | engine, as read in | which factors, when | what is lost in `dual` | what to type |",
        "|---|---|---|---|---|",
    ]
    for name, engine in ENGINES.items():
        title = f"{engine.title} {engine.version}".strip()
        lines.append(f"| `{name}` | {title} | {engine.chooses} | {engine.loses} | {engine.typed} |")
    return "\n".join(lines) + "\n"
