import re
from itertools import islice

import numpy as np

from needles.generated import distractor_records, noise_records
from needles.needle import draw_needles


def keys_and_values(records: list[str]) -> tuple[set[str], set[str]]:
    found = re.findall(r"One of the special magic numbers for (\S+) is: (\d{7})\.", " ".join(records))
    return {key for key, _ in found}, {value for _, value in found}


def test_noise_is_the_five_sentences_of_ruler() -> None:
    lines = next(noise_records()).splitlines()
    assert set(lines) == {"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."}


def test_distractors_are_whole_needle_sentences_and_the_same_every_time() -> None:
    records = list(islice(distractor_records(5), 10))
    assert records == list(islice(distractor_records(5), 10))
    for record in records:
        assert re.fullmatch(r"(One of the special magic numbers for [a-z]+-[a-z]+ is: \d{7}\. ?){20}", record)


def test_distractors_of_different_groups_share_neither_key_nor_value() -> None:
    records = list(islice(distractor_records(5), 500))
    groups = [keys_and_values(records[group::5]) for group in range(5)]
    for one in range(5):
        for other in range(one):
            assert not groups[one][0] & groups[other][0]
            assert not groups[one][1] & groups[other][1]


def test_distractors_share_neither_key_nor_value_with_needles() -> None:
    keys, values = keys_and_values(list(islice(distractor_records(5), 2_000)))
    needles = draw_needles(np.random.default_rng(0), 10_000)
    assert not keys & {needle.key for needle in needles}
    assert not values & {needle.value for needle in needles}
