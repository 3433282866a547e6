"""Scales, ticks and the HTML of a plot."""

import math
import re

import pytest

from results.plots import Axis, Plot, Scale, Series, plot_html, scale_of


def test_a_scale_places_its_ends_its_middle_and_what_lies_outside() -> None:
    scale = Scale(10.0, 30.0)
    assert [scale.place(value) for value in (10.0, 20.0, 30.0, 5.0, 99.0)] == [0.0, 0.5, 1.0, 0.0, 1.0]


def test_equal_factors_are_equal_steps_of_a_logarithmic_scale() -> None:
    scale = Scale(1.0, 10_000.0, is_log=True)
    assert scale.place(10.0) == pytest.approx(0.25)
    assert scale.place(1000.0) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0.0, 3600.0), [0.0, 1000.0, 2000.0, 3000.0]),
        (Scale(1.0, 1.8), [1.0, 1.2, 1.4, 1.6, 1.8]),
        (Scale(0.9, 41.0, is_log=True), [1.0, 2.0, 5.0, 10.0, 20.0]),
        (Scale(1e-3, 1e8, is_log=True), [1e-2, 1.0, 1e2, 1e4, 1e6, 1e8]),
    ],
)
def test_ticks_are_round(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks() == ticks


@pytest.mark.parametrize("low", [1e-6, 0.3, 1.0, 7.0, 1e5])
@pytest.mark.parametrize("ratio", [1.0001, 1.7, 19.0, 21.0, 1e6, 1e12])
def test_any_range_has_ticks_inside_it_and_no_more_than_fit(low: float, ratio: float) -> None:
    scale = scale_of([low, low * ratio])
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 6
    assert all(scale.low <= tick <= scale.high for tick in ticks)


@pytest.mark.parametrize("values", [[], [math.nan], [2.0], [0.0, 0.0], [-1.0, math.inf]])
def test_a_scale_of_next_to_nothing_has_room(values: list[float]) -> None:
    scale = scale_of(values)
    assert scale.low < scale.high
    assert scale.ticks()


def test_a_scale_is_logarithmic_only_where_values_differ_much_and_are_above_zero() -> None:
    assert scale_of([1.0, 30.0]).is_log
    assert not scale_of([1.0, 15.0]).is_log
    assert not scale_of([0.0, 1e6]).is_log
    assert not scale_of([1.0, 30.0], may_log=False).is_log


def plot(*series: Series, title: str = "a plot") -> str:
    axis = Axis.of("x < y", Scale(0.0, 10.0))
    return plot_html(Plot(title=title, description="words", x=axis, y=axis, series=series, marks=[(5.0, "<mark>")]))


def test_points_lie_where_the_scale_says_and_those_without_a_number_are_left_out() -> None:
    drawn = plot(Series(label="a", points=[(0.0, 0.0), (5.0, math.nan), (10.0, 5.0)], classes="win"))
    assert 'class="line win" d="M0 1000L1000 500"' in drawn


def test_dots_on_the_same_place_are_drawn_once() -> None:
    drawn = plot(Series(label="a", points=[(5.0, 5.0)] * 100, classes="faint", is_joined=False))
    assert 'd="M500 500h0"' in drawn


def test_every_text_of_a_plot_is_escaped() -> None:
    drawn = plot(Series(label="<b>", points=[(0.0, 0.0)], classes="win"), title='"><script>')
    assert "<script" not in drawn
    assert "<b>" not in drawn
    assert "<mark>" not in drawn
    assert "x &lt; y" in drawn


def test_a_plot_says_in_words_what_it_shows() -> None:
    assert re.search(r'<svg [^>]*role="img" aria-label="a plot\. words"', plot())
