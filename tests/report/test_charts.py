import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.metrics.fields import short_number
from kexue_train.report.charts import Series, bar_chart, line_chart, thin

UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}
numbers = st.floats(-1e6, 1e6, allow_nan=False)


def chart_of(points, **options):
    return line_chart("name", "Title", [Series("training", points)], **options)


def value_of(label):
    """What a tick says, as a person reads it."""
    number, _, unit = label.replace(",", "").partition(" ")
    return float(number[:-1]) / 100 if number.endswith("%") else float(number) * UNITS.get(unit, 1)


def axis_of(chart, name):
    return json.loads(chart.values)[name]


@given(st.lists(st.tuples(st.integers(0, 10**9), numbers), min_size=1, max_size=40, unique_by=lambda p: p[0]))
def test_a_path_read_back_gives_the_points(points):
    points.sort()
    chart = chart_of(points)
    (left, right), (low, high) = axis_of(chart, "across"), axis_of(chart, "up")
    path = chart.curves[0].line or chart.curves[0].dots.removesuffix("h0")
    drawn = [float(number) for number in path.removeprefix("M").split()]
    for (x, y), across, down in zip(points, drawn[::2], drawn[1::2], strict=True):
        assert 0 <= across <= 1000
        assert 0 <= down <= 1000
        assert left + across / 1000 * (right - left) == pytest.approx(x, abs=1e-3 * (right - left)) or left == right
        assert high - down / 1000 * (high - low) == pytest.approx(y, abs=1e-3 * (high - low))


@given(low=numbers, span=st.floats(1e-6, 1e6), form=st.sampled_from(["plain", "share"]))
def test_ticks_stand_where_their_labels_say(low, span, form):
    chart = chart_of([(0, low), (10, low + span)], form=form)
    bottom, top = axis_of(chart, "up")
    assert 3 <= len(chart.y_ticks) <= 9
    assert all(0 <= tick.place <= 100 for tick in chart.y_ticks)
    for tick in chart.y_ticks:
        place = bottom + tick.place / 100 * (top - bottom)
        assert value_of(tick.label) == pytest.approx(place, abs=0.02 * (top - bottom) + 1e-6 * abs(low))


@given(low=st.floats(0, 1e5), span=st.floats(1e-4, 1e6))
def test_labels_of_one_axis_differ(low, span):
    labels = [tick.label for tick in chart_of([(0, low), (10, low + span)]).y_ticks]
    assert len(set(labels)) == len(labels)


def test_labels_of_one_axis_have_one_unit():
    chart = chart_of([(0, 1), (16_000_000, 2)], x_label="tokens")
    assert [tick.label for tick in chart.x_ticks] == ["0", "2.5 M", "5.0 M", "7.5 M", "10.0 M", "12.5 M", "15.0 M"]


def test_a_thinned_curve_keeps_ends_and_spikes():
    points = [(float(step), math.sin(step)) for step in range(100_000)]
    points[43_210] = (43_210.0, 99.0)
    kept = thin(points)
    assert len(kept) <= 602
    assert {points[0], points[43_210], points[-1]} <= set(kept)
    assert kept == sorted(kept)


def test_short_curves_are_not_thinned():
    points = [(float(step), 1.0) for step in range(600)]
    assert thin(points) == points


def test_description_tells_first_and_last_values():
    points = [(step, 10 - step / 100) for step in range(1, 501)]
    chart = line_chart(
        "loss",
        "Loss",
        [Series("training", points), Series("guessing", [(1, 6.5), (500, 6.5)], mark="level")],
        events=[(40, "resumed")],
    )
    expected = "Loss: training from 9.99 at step 1 to 5 at step 500; guessing: 6.5; resumed at step 40."
    assert chart.description == expected


def test_the_table_interpolates_between_points():
    series = [Series("often", [(0, 0.0), (10, 1.0)]), Series("rare", [(4, 7.0)])]
    assert line_chart("x", "X", series).table == [["step", "often", "rare"], ["4", "0.4", "7"]]


def test_no_points_give_no_chart():
    assert line_chart("x", "X", [Series("a", []), Series("guessing", [(0, 1), (1, 1)], mark="level")]) is None


def test_crowded_events_share_a_label():
    chart = chart_of([(0, 1), (100, 2)], events=[(50, "resumed"), (52, "resumed"), (90, "phase 2"), (500, "outside")])
    assert [(event.place, event.label) for event in chart.events] == [(50, "resumed"), (52, ""), (90, "phase 2")]


def test_an_axis_from_zero_starts_there():
    chart = chart_of([(0, 50.0), (1, 60.0)], from_zero=True)
    assert (chart.y_ticks[0].label, chart.y_ticks[0].place) == ("0", 0)


def test_labels_cannot_end_the_script_element():
    assert "</script>" not in line_chart("x", "X", [Series("</script>", [(0, 1)])]).values


def test_bars_without_length_have_no_share():
    assert [bar.share for bar in bar_chart("x", [("a", 0.0)], str).bars] == [0.0]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (999.6, "1 k"), (3_275_253, "3.28 M"), (2.5e12, "2.5 T")]
)
def test_short_numbers(value, text):
    assert short_number(value) == text
