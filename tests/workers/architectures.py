"""Tiny configurations of further architectures: those whose forward can be trimmed, and some whose cannot."""

from collections.abc import Callable
from typing import Any

from transformers import (
    ArceeConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    Ernie4_5Config,
    Exaone4Config,
    FalconConfig,
    Gemma3nTextConfig,
    Glm4Config,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    HeliumConfig,
    HunYuanDenseV1Config,
    JambaConfig,
    Llama4TextConfig,
    MiniCPM3Config,
    MinistralConfig,
    MixtralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OlmoeConfig,
    PersimmonConfig,
    PhiConfig,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from tests.workers.conftest import CONFIGS, SIZES, SLIDING, WIDE

NARROW: dict[str, Any] = {"head_dim": 8}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
# Heads that rotate in one half, with values of fewer dimensions than keys
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
ROUTED: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
}
LINEAR_FIRST: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
TRIMMABLE: dict[str, Callable[[], PreTrainedConfig]] = CONFIGS | {
    "arcee": lambda: ArceeConfig(**SIZES),
    "cohere": lambda: CohereConfig(**SIZES),
    "cohere2": lambda: Cohere2Config(**SIZES | SLIDING),
    "deepseek_v3": lambda: DeepseekV3Config(**SIZES | LATENT | ROUTED),
    "ernie4_5": lambda: Ernie4_5Config(**SIZES),
    "exaone4": lambda: Exaone4Config(**SIZES),
    "glm4": lambda: Glm4Config(**SIZES),
    "gpt_oss": lambda: GptOssConfig(**SIZES | LOCAL_EXPERTS | SLIDING | WIDE),
    "granite": lambda: GraniteConfig(**SIZES),
    "granite_moe": lambda: GraniteMoeConfig(**SIZES | LOCAL_EXPERTS),
    "helium": lambda: HeliumConfig(**SIZES | NARROW),
    "hunyuan": lambda: HunYuanDenseV1Config(**SIZES | NARROW),
    "minicpm3": lambda: MiniCPM3Config(**SIZES | LATENT),
    "ministral": lambda: MinistralConfig(**SIZES | SLIDING | NARROW),
    "mixtral": lambda: MixtralConfig(**SIZES | LOCAL_EXPERTS),
    "nemotron": lambda: NemotronConfig(**SIZES),
    "olmo": lambda: OlmoConfig(**SIZES),
    "olmo2": lambda: Olmo2Config(**SIZES),
    "olmo3": lambda: Olmo3Config(**SIZES | SLIDING),
    "olmoe": lambda: OlmoeConfig(**SIZES | EXPERTS),
    "persimmon": lambda: PersimmonConfig(**SIZES),
    "phi": lambda: PhiConfig(**SIZES),
    "phimoe": lambda: PhimoeConfig(**SIZES | LOCAL_EXPERTS),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES | EXPERTS | WIDE | {"moe_intermediate_size": 16}),
    "seed_oss": lambda: SeedOssConfig(**SIZES),
    "smollm3": lambda: SmolLM3Config(**SIZES),
    "stablelm": lambda: StableLmConfig(**SIZES),
    "starcoder2": lambda: Starcoder2Config(**SIZES),
}
"""Architectures whose layers hand keys and values to a cache and queries to transformers' attention interface."""
REFUSED: dict[str, Callable[[], PreTrainedConfig]] = {
    "falcon": lambda: FalconConfig(**SIZES),
    "gemma3n": lambda: Gemma3nTextConfig(**SIZES | WIDE | {"num_kv_shared_layers": 0}),
    "jamba": lambda: JambaConfig(**SIZES | EXPERTS),
    "llama4": lambda: Llama4TextConfig(**SIZES | WIDE),
    "qwen3_next": lambda: Qwen3NextConfig(**SIZES | EXPERTS | WIDE | LINEAR_FIRST),
}
"""Architectures with other layers: no list of them, states instead of keys and values, chunks instead of windows."""
