"""A Llama as a GGUF file in 32-bit floats, whose rounding hides nothing."""

from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_llama(
    model: PreTrainedModel,
    file: Path,
    *,
    rope_freqs: tuple[float, ...] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write a Llama as llama.cpp's converter does: names of its own, rows of q and k with their pairs interleaved.

    It takes token ids where there is no tokenizer, which is one of bytes and three special tokens behind them.
    """
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        vocabulary = tokenizer.get_vocab()
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
        writer.add_token_types([1] * 256 + [3] * 3)
        writer.add_token_scores([0.0] * config.vocab_size)
        writer.add_bos_token_id(256)
        writer.add_eos_token_id(257)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        for projection, num_heads in heads.items():
            if projection in name:
                pairs = array.reshape(num_heads, 2, config.head_dim // 2, config.hidden_size)
                array = pairs.swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(str(names.get_name(name, try_suffixes=(".weight",))), np.ascontiguousarray(array))
    if rope_freqs:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_freqs, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
