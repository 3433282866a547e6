from copy import deepcopy

from transformers import PreTrainedTokenizerFast

from needles.tokenizer import decode, encode


def test_the_end_of_sentence_token_is_dropped_and_the_first_token_is_kept(eos: PreTrainedTokenizerFast) -> None:
    ids = encode(eos, "hidden text", add_special_tokens=True)
    assert ids[0] == eos.bos_token_id
    assert eos.eos_token_id not in ids
    assert decode(eos, ids[1:]) == "hidden text"


def test_no_special_tokens_are_added_where_none_are_wanted(eos: PreTrainedTokenizerFast) -> None:
    ids = encode(eos, "hidden text", add_special_tokens=False)
    assert eos.bos_token_id not in ids


def test_spaces_before_full_stops_survive_decoding(byte_level: PreTrainedTokenizerFast) -> None:
    assert decode(byte_level, encode(byte_level, "the end .", add_special_tokens=True)) == "the end ."


def test_a_tokenizer_saved_with_truncation_does_not_cut_the_text(byte_level: PreTrainedTokenizerFast) -> None:
    truncating = deepcopy(byte_level)
    truncating.backend_tokenizer.enable_truncation(4)
    assert decode(truncating, encode(truncating, "a text of many words", add_special_tokens=True)).endswith("words")
