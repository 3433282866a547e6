import pytest
from transformers import PreTrainedTokenizerFast

from needles.answer import check_needle, find_answer
from needles.needle import Needle
from needles.tokenizer import decode, encode

NEEDLE = Needle("numerous-kite", "6716097")


def test_single_digits_are_seven_tokens(byte_level: PreTrainedTokenizerFast) -> None:
    ids = encode(byte_level, "provided text is 6716097", add_special_tokens=False)
    assert find_answer(byte_level, ids, NEEDLE) == len(ids) - 7


def test_a_token_merged_over_the_border_belongs_to_the_answer(merging: PreTrainedTokenizerFast) -> None:
    merged = 0
    for value in range(1_000_000, 10_000_000, 123_457):
        needle = Needle("numerous-kite", str(value))
        ids = encode(merging, f"mentioned in the provided text is {value}", add_special_tokens=False)
        start = find_answer(merging, ids, needle)
        assert decode(merging, ids[start:]).endswith(needle.value)
        assert not decode(merging, ids[start + 1 :]).endswith(needle.value)
        merged += decode(merging, ids[start:]) != needle.value
    assert merged > 10


def test_ids_that_do_not_end_with_the_value_are_refused(byte_level: PreTrainedTokenizerFast) -> None:
    ids = encode(byte_level, "provided text is 6716097 or so", add_special_tokens=False)
    with pytest.raises(ValueError, match=r"must end with the answer 6716097, got '.* 6716097 or so'\. Use a model"):
        find_answer(byte_level, ids, NEEDLE)


def test_a_needle_that_is_there_whole_is_accepted(byte_level: PreTrainedTokenizerFast) -> None:
    check_needle(byte_level, encode(byte_level, f"a {NEEDLE.sentence()} b", add_special_tokens=False), NEEDLE)


def test_a_needle_that_the_tokenizer_cannot_encode_is_refused(digitless: PreTrainedTokenizerFast) -> None:
    ids = encode(digitless, NEEDLE.sentence(), add_special_tokens=False)
    message = r"must be able to encode the needle 'One of .*6716097\.', got '.*<unk>.*' back\. Use a model whose"
    with pytest.raises(ValueError, match=message):
        check_needle(digitless, ids, NEEDLE)
