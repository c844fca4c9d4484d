"""Pictures carry the figures that they are of, and say when those can't be trusted."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import timedelta
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from app.experiments.course import Course, Point
from app.experiments.plots import COLOURS, course_plot, intervals_plot
from app.experiments.results import Measured, MetricResult, Results
from app.experiments.soundness import Losses, SampleRatios
from tests.app.experiments.examples import DAY, START

BLUE = (0, 114, 178)
SVG = "{http://www.w3.org/2000/svg}"
MISMATCH = "sample ratio mismatch (p = 1e-20, below 0.001): control 2,512, treatment 1,764"
LIFT = Measured(
    "treatment", 2500, 0, 0.11, 0.01, (0.004, 0.016), 0.0123, 0.0246, 0.142, (0.084, 0.203), (0.002, 0.018),
    (0.045, 0.247), 0.03,
)  # fmt: skip
POINTS = tuple(
    Point(START + day * DAY, day * 500, 0.1 + 0.01 * day, (0.05, 0.2), (0.0, 0.3) if day > 1 else None)
    for day in (1, 2, 3)
)
COURSE = Course("feed", "ctr", "control", DAY, 0.05, (), {"treatment": POINTS})


def results(*lifts: Measured, problems: tuple[str, ...] = ()) -> Results:
    names = ["control", *{each.variant: None for each in lifts}]
    ratios = SampleRatios(False, 0.5, 0.001, dict.fromkeys(names, 2500), {}, {})
    metrics = tuple(
        MetricResult(f"metric {number}", "", "users", (Measured("control", 2500, 0, 0.1), each))
        for number, each in enumerate(lifts)
    )
    return Results(
        "feed", 2, not problems, problems, ratios, Losses(0, 0.0, {}), {}, "", "shared", False, "running", START, None,
        START + DAY, "control", None, 0.05, None, True, "holm", (), metrics,
    )  # fmt: skip


def parsed(picture: bytes) -> ElementTree.Element:
    return ElementTree.fromstring(picture)  # noqa: S314 - we drew it


def words(picture: bytes) -> str:
    """All text of an SVG, in reading order."""
    return " | ".join("".join(element.itertext()) for element in parsed(picture).iter(f"{SVG}text"))


def strokes(picture: bytes) -> str:
    return picture.decode().lower()


def test_the_intervals_are_said_in_figures() -> None:
    said = words(intervals_plot(results(LIFT), "svg"))

    for each in ("feed, run 2", "metric 0", "+14.2 % [+8.4 %, +20.3 %]", "p = 0.0246", "relative lift over control",
                 "thick: 95% interval for one planned look · thin: 95%, valid at every look"):  # fmt: skip
        assert each in said
    assert "NOT TRUSTWORTHY" not in said


def test_both_intervals_are_drawn_where_they_are() -> None:
    """As wide as their figures: the always-valid one to the one of one look as 0.202 to 0.119."""
    drawn = parsed(intervals_plot(results(LIFT), "svg"))
    lines = [path for path in drawn.iter(f"{SVG}path") if COLOURS[0].lower() in path.get("style", "").lower()]
    widths = sorted(_width(line.get("d", "")) for line in lines if "stroke-width" in line.get("style", ""))

    assert widths[-1] / widths[-2] == pytest.approx(0.202 / 0.119, rel=0.01)


def _width(path: str) -> float:
    """Of a straight line, `M x y L x y`."""
    numbers = [float(each) for each in path.split() if each.lstrip("-").replace(".", "").isdigit()]
    return abs(numbers[2] - numbers[0]) if len(numbers) == 4 else 0.0


def test_what_can_t_be_told_is_said() -> None:
    said = words(intervals_plot(results(replace(LIFT, relative_lift=None)), "svg"))
    assert "no lift can be told yet" in said

    said = words(intervals_plot(results(replace(LIFT, adjusted_p_value=None, p_value=0.00001)), "svg"))
    assert "p < 0.0001" in said


def test_several_variants_are_told_apart_by_name_and_colour() -> None:
    picture = intervals_plot(results(LIFT, replace(LIFT, variant="other")), "svg")

    assert "treatment" in words(picture)
    assert "other" in words(picture)


def test_an_untrustworthy_result_says_so_in_the_picture() -> None:
    for picture in (
        intervals_plot(results(LIFT, problems=(MISMATCH,)), "svg"),
        course_plot(replace(COURSE, problems=(MISMATCH,)), "svg"),
    ):
        assert "NOT TRUSTWORTHY" in words(picture)
        assert "control 2,512, treatment 1,764" in words(picture)


def test_a_course_names_its_window_its_variants_and_its_last_lift() -> None:
    both = {"treatment": POINTS, "other": tuple(replace(point, lift=-point.lift) for point in POINTS)}
    picture = course_plot(replace(COURSE, variants=both, window=timedelta(hours=36)), "svg")

    for each in ("feed: ctr within 36 h of the first exposure", "treatment", "other", "+13.0 %", "-13.0 %"):
        assert each in words(picture)
    assert all(colour.lower() in strokes(picture) for colour in COLOURS[:2])


def test_a_course_of_nothing_is_still_a_picture() -> None:
    said = words(course_plot(replace(COURSE, variants={"treatment": ()}), "svg"))

    assert "no lift can be told yet" in said
    assert "1970" not in said


def test_a_picture_as_png() -> None:
    for picture in (intervals_plot(results(LIFT), "png"), course_plot(COURSE, "png")):
        with Image.open(io.BytesIO(picture)) as image:
            assert image.format == "PNG"
            assert image.width >= 1000
            pixels = np.asarray(image.convert("RGB"))
        assert (pixels == BLUE).all(axis=2).any()


def test_the_same_figures_give_the_same_file() -> None:
    assert intervals_plot(results(LIFT), "svg") == intervals_plot(results(LIFT), "svg")
    assert b"<dc:date>" not in course_plot(COURSE, "svg")


def test_markup_in_a_name_stays_text() -> None:
    said = words(intervals_plot(replace(results(LIFT), control="<script>alert(1)</script> $x_1$"), "svg"))

    assert "<script>alert(1)</script> $x_1$" in said
