import pytest
from transformers import PreTrainedTokenizerFast

from needles.answer import check_needles, find_answer, find_answers
from needles.needle import Needle
from needles.tokenizer import decode, encode

NEEDLE = Needle("numerous-kite", "6716097")
OTHER = Needle("odd-chair", "4438296")


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


def test_each_of_several_answers_is_found_behind_its_own_question(byte_level: PreTrainedTokenizerFast) -> None:
    # Both values stand in the haystack too, and the first one's digits again
    parts = ["4438296 and 6716097 of 6716097. What? it is", " 6716097", "\nWhat? it is", " 4438296"]
    ids = [encode(byte_level, part, add_special_tokens=False) for part in parts]
    ends = [sum(len(part) for part in ids[: number + 1]) for number in range(4)]
    found = find_answers(byte_level, [token for part in ids for token in part], [NEEDLE, OTHER])
    assert found == [(ends[1] - 7, ends[1]), (ends[3] - 7, ends[3])]


def test_an_answer_that_is_merged_with_what_follows_ends_behind_it(lines: PreTrainedTokenizerFast) -> None:
    ids = encode(lines, "it is 6716097\nit is 4438296", add_special_tokens=False)
    found = [decode(lines, ids[start:end]) for start, end in find_answers(lines, ids, [NEEDLE, OTHER])]
    assert found == ["6716097\n", "4438296"]


def test_an_earlier_answer_that_is_missing_is_refused(byte_level: PreTrainedTokenizerFast) -> None:
    ids = encode(byte_level, "it is 6716090\nit is 4438296", add_special_tokens=False)
    message = r"must hold the answer 6716097 before the next question, got none in the 544 tokens before the"
    with pytest.raises(ValueError, match=message):
        find_answers(byte_level, ids, [NEEDLE, OTHER])


def test_ids_that_do_not_end_with_the_value_are_refused(byte_level: PreTrainedTokenizerFast) -> None:
    ids = encode(byte_level, "provided text is 6716097 or so", add_special_tokens=False)
    with pytest.raises(ValueError, match=r"must end with the answer 6716097, got '.* 6716097 or so'\. Use a model"):
        find_answer(byte_level, ids, NEEDLE)


def test_a_needle_that_is_there_whole_is_accepted(byte_level: PreTrainedTokenizerFast) -> None:
    ids = encode(byte_level, f"a {NEEDLE.sentence()} b", add_special_tokens=False)
    check_needles(byte_level, ids, [NEEDLE])
    with pytest.raises(ValueError, match=r"must be able to encode the needle 'One of .* for odd-chair is: 4438296"):
        check_needles(byte_level, ids, [NEEDLE, OTHER])


def test_a_needle_that_the_tokenizer_cannot_encode_is_refused(digitless: PreTrainedTokenizerFast) -> None:
    ids = encode(digitless, NEEDLE.sentence(), add_special_tokens=False)
    message = r"must be able to encode the needle 'One of .*6716097\.', got '.*<unk>.*' back\. Use a model whose"
    with pytest.raises(ValueError, match=message):
        check_needles(digitless, ids, [NEEDLE])
