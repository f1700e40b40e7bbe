"""Charts say what they were given: in their shapes, in their label, and in nothing a hostile name could add."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from pipelines.report.charts import Line, Mark, histogram, interval_chart, line_chart, number, stacked_bar


def _points(line):
    return [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]


def test_lines_fall_where_the_numbers_fall():
    train = Line(name="train", css="train", points=((0, 6.0), (50, 4.0), (100, 3.0)))
    held_out = Line(name="held out", css="held-out", points=((50, 5.0), (100, 4.5)))
    root = ElementTree.fromstring(line_chart([train, held_out], title="Cross-entropy", x_name="steps"))
    first, second = root.findall("polyline")
    assert [y for _, y in _points(first)] == sorted(y for _, y in _points(first)), "a falling loss goes down the screen"
    # (50, 5.0) lies straight under or over the other line's (50, 4.0), halfway between its 6.0 and 4.0.
    assert _points(second)[0][0] == pytest.approx(_points(first)[1][0], abs=0.06)
    assert _points(second)[1][0] == pytest.approx(_points(first)[2][0], abs=0.06)
    top, middle = _points(first)[0][1], _points(first)[1][1]
    assert _points(second)[0][1] == pytest.approx((top + middle) / 2, abs=0.11)
    assert root.attrib["aria-label"] == "Cross-entropy over steps: train from 6 to 3; held out from 5 to 4.5"


def test_labels_of_lines_that_meet_do_not_lie_on_each_other():
    lines = [Line(name=name, css=name, points=((0, 2.0), (10, 1.0))) for name in ("a", "b", "c")]
    root = ElementTree.fromstring(line_chart(lines, title="x", x_name="steps"))
    labels = sorted(float(text.attrib["y"]) for text in root.findall("text") if "label" in text.attrib["class"])
    assert min(b - a for a, b in pairwise(labels)) >= 12.9
    assert labels[-1] < 168


@pytest.mark.parametrize("values", [[2.5], [2.5] * 7, [0.0], [-23.0, -16.0, -16.1], [1e-6, 3e-6], [1, 2, 3, 1000]])
def test_histogram_counts_every_value_once(values):
    root = ElementTree.fromstring(histogram(values, title="Length", unit="s"))
    bars = root.findall("rect")
    heights = [float(bar.attrib["height"]) for bar in bars]
    per_value = sum(heights) / len(values)
    counts = [height / per_value for height in heights]
    assert all(count == pytest.approx(max(1, round(count)), abs=0.02) for count in counts)
    for bar in bars:
        left, width = float(bar.attrib["x"]), float(bar.attrib["width"])
        assert left >= 0
        assert left + width <= 336


def test_median_of_an_even_number_of_values_lies_between_them():
    assert "median 2.5" in histogram([1.0, 2.0, 3.0, 90.0], title="x", unit="s")


def test_parts_of_a_bar_are_shares_of_the_whole():
    bar = stacked_bar([("kept", "kept", 30.0), ("rejected", "rejected", 10.0), ("none", "none", 0.0)], title="Voice")
    assert re.findall(r'class="(\w+)" x="([\d.]+)" y="0" width="([\d.]+)"', bar) == [
        ("kept", "0.000", "75.000"),
        ("rejected", "75.000", "25.000"),
    ]
    assert "Voice: kept 75 %, rejected 25 %, none 0 %" in bar


@pytest.mark.parametrize("values", [[8.6, 9.1, 9.4, 10.4], [0.31, 0.69], [-19.5, -17.0], [100.0, 104.5]])
def test_names_of_an_axis_do_not_lie_on_each_other(values):
    root = ElementTree.fromstring(histogram(values, title="Speech rate", unit="phonemes/s"))
    spans = []
    for text in root.findall("text[@y='163.0']"):
        half, x = len(text.text) * 6 / 2, float(text.attrib["x"])
        spans.append((x - half, x + half) if text.attrib["text-anchor"] == "middle" else (x - 2 * half, x))
    assert len(spans) >= 2
    assert all(right <= left for (_, right), (left, _) in pairwise(spans))
    assert spans[-1][1] <= 336


def test_nothing_to_show_gives_nothing():
    assert line_chart([Line(name="a", css="a", points=())], title="x", x_name="y") == ""
    assert histogram([], title="x", unit="y") == ""
    assert stacked_bar([("a", "a", 0.0)], title="x") == ""


def test_names_cannot_leave_their_attribute():
    hostile = '"><script>alert(1)</script>'
    charts = (
        line_chart([Line(name=hostile, css=hostile, points=((0, 1), (1, 2)))], title=hostile, x_name=hostile),
        histogram([1.0, 2.0], title=hostile, unit=hostile),
        stacked_bar([(hostile, hostile, 1.0)], title=hostile),
    )
    for chart in charts:
        assert "<script" not in chart
        ElementTree.fromstring(chart)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (5.1234, "5.12"),
        (-16.04, "−16"),
        (1234.5, "1234"),
        (12345.0, "12,345"),
        (0.00012, "0.00012"),
        (0.00000012, "1.2e-07"),
        (3e12, "3.0e+12"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_marks_and_their_intervals_lie_where_their_numbers_do():
    marks = [
        Mark(name="first", css="pair", value=0.2, interval=(0.1, 0.4)),
        Mark(name="a longer name", css="chosen", value=0.4),
    ]
    root = ElementTree.fromstring(interval_chart(marks, title="Errors", show="{:.2f}".format, tick="{:g}".format))
    dots = [float(dot.attrib["cx"]) for dot in root.findall("circle")]
    (reach,) = [line for line in root.findall("line") if "reach" in line.attrib["class"]]
    low, high = float(reach.attrib["x1"]), float(reach.attrib["x2"])
    assert low < dots[0] < high
    assert dots[1] == pytest.approx(high, abs=0.06)
    assert (dots[0] - low) / (high - low) == pytest.approx(1 / 3, abs=0.01)
    assert root.attrib["aria-label"] == "Errors: first 0.20; a longer name 0.40"
    # The dot of the greatest value stands clear of its number, however long that is.
    wide = ElementTree.fromstring(interval_chart(marks, title="Errors", show=lambda _: "100.0 %", tick=str))
    assert max(float(dot.attrib["cx"]) for dot in wide.findall("circle")) < max(dots) - 15
    assert not interval_chart([], title="Errors", show=str, tick=str)
    assert interval_chart(marks[:1], title="<b>", show=str, tick=str).count("<b>") == 0
