"""What a run says of its workers' speed."""

import pytest

from results.speed import Speed, shown

KNOWN = Speed(
    device="AMD EPYC, 2 threads",
    document_flops=1.25e12,
    flops_per_second=41.2e9,
    ceiling=65.2e9,
    peak_bytes=1_830_000_000,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0 FLOP"),
        (7.0, "7 FLOP"),
        (999.4, "999 FLOP"),
        (999.6, "1 kFLOP"),
        (12345.0, "12.3 kFLOP"),
        (999.6e9, "1 TFLOP"),
        (6.6e15, "6.6 PFLOP"),
        (6.6e18, "6.6 EFLOP"),
        (1.5e23, "1.5e+05 EFLOP"),
    ],
)
def test_numbers_have_three_digits_and_a_prefix(number: float, text: str) -> None:
    assert shown(number, "FLOP") == text


def test_what_is_known_is_told() -> None:
    assert KNOWN.computing == (
        # the share by a pocket calculator: 41.2 / 65.2 = 0.632
        "1.25 TFLOP per document, 41.2 GFLOP/s per worker, 63% of a plain matmul (65.2 GFLOP/s on AMD EPYC, 2 threads)"
    )
    assert KNOWN.rate == "41.2 GFLOP/s per worker, 63% of a plain matmul"
    assert KNOWN.memory == "1.83 GB at most in a worker"


def test_what_is_not_known_is_not_told() -> None:
    assert (Speed().computing, Speed().rate, Speed().memory, Speed().share) == ("", "", "", None)
    assert Speed(flops_per_second=5e9, device="a GPU").computing == "5 GFLOP/s per worker"
    assert Speed(document_flops=5e9, ceiling=7e9).computing == "5 GFLOP per document"


@pytest.mark.parametrize("speed", [Speed(), KNOWN, Speed(peak_bytes=3)])
def test_a_speed_comes_back_from_its_record(speed: Speed) -> None:
    assert Speed.from_record(speed.to_record()) == speed


def test_nothing_is_known_where_there_was_no_record() -> None:
    assert Speed.from_record(None) == Speed()


@pytest.mark.parametrize(
    "record",
    [
        3,
        [],
        {},
        {**KNOWN.to_record(), "colour": "red"},
        *({**KNOWN.to_record(), name: "3"} for name in ("ceiling", "peak_bytes")),
    ],
)
def test_another_record_is_refused(record: object) -> None:
    with pytest.raises(ValueError, match=r"^a speed must have the values that Ropewalk writes, got .*\. Was the file "):
        Speed.from_record(record)


@pytest.mark.parametrize(("name", "value"), [("device", 3), ("ceiling", True), ("peak_bytes", 1.5)])
def test_values_of_other_kinds_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"^a speed must have the values that Ropewalk writes, got "):
        Speed.from_record({**KNOWN.to_record(), name: value})
