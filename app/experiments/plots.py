"""Results as pictures: intervals of many metrics side by side, and one lift as it went over time; SVG or PNG.

matplotlib is imported with the first picture: most workers never draw one. Figures are made as objects and drawn by Agg
or as SVG, so there is no state to clean up and no display to look for.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from app.experiments.course import Course, Point
from app.experiments.results import Measured, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]
MEDIA_TYPES: dict[Format, str] = {"svg": "image/svg+xml", "png": "image/png"}

# Okabe and Ito's colours, which those who see no red or no green tell apart too; each also has a marker of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P")
_INK, _FAINT, _ALARM = "#1a1a1a", "#767676", "#a40000"
_WIDTH_INCHES, _DOTS_PER_INCH = 9.0, 120
_ALARM_CHARACTERS = 118

# Its authors promise nothing of two threads that draw at once: https://matplotlib.org/stable/users/faq.html
_DRAWING = threading.Lock()


def intervals_plot(results: Results, format_: Format) -> bytes:
    """The relative lift of each metric and variant: the dot, the interval of one look, and the always-valid one."""
    with _DRAWING:
        rows = list(_rows(results))
        figure = _figure(1.9 + 0.55 * max(len(rows), 1))
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            _draw_interval(axes, place, row)
        axes.axvline(0, color=_INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
        level = f"{1 - results.alpha:.0%}"
        axes.set_xlabel(f"relative lift over {results.control}")
        _explain(figure, f"thick: {level} interval for one planned look · thin: {level}, valid at every look")
        _title(figure, axes, f"{results.key}, run {results.run}", results.problems)
        return _drawn(figure, format_)


def course_plot(course: Course, format_: Format) -> bytes:
    """The lift of one metric up to each day, with the band that holds at all of them."""
    with _DRAWING:
        figure = _figure(4.6)
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(course.variants.items()):
            _draw_course(axes, number, name, points)
        axes.axhline(0, color=_INK, linewidth=1)
        axes.yaxis.set_major_formatter(_as_percent)
        axes.set_ylabel(f"relative lift over {course.control}")
        if any(course.variants.values()):
            _name_days(axes)
            axes.legend(loc="upper left", frameon=False)
        else:
            axes.set_xticks([])
            axes.annotate("no lift can be told yet", (0.5, 0.6), xycoords="axes fraction", color=_FAINT, ha="center")
        level = f"{1 - course.alpha:.0%}"
        _explain(figure, f"band: {level}, valid at every look · dashes: {level} for one planned look")
        hours = course.window.total_seconds() / 3600
        watched = f"{hours / 24:g} d" if hours % 24 == 0 else f"{hours:g} h"
        _title(figure, axes, f"{course.key}: {course.metric} within {watched} of the first exposure", course.problems)
        return _drawn(figure, format_)


class _Row(NamedTuple):
    label: str
    number: int
    measured: Measured


def _rows(results: Results) -> Iterator[_Row]:
    is_alone = len(results.sample_ratio.counts) == 2
    for metric in results.metrics:
        for number, measured in enumerate(metric.variants[1:]):
            yield _Row(metric.metric if is_alone else f"{metric.metric}\n{measured.variant}", number, measured)


def _draw_interval(axes: Axes, place: int, row: _Row) -> None:
    measured, colour = row.measured, _colour(row.number)
    if measured.relative_lift is None:
        axes.annotate("no lift can be told yet", (0, place), color=_FAINT, va="center", xytext=(6, 0),
                      textcoords="offset points")  # fmt: skip
        return
    for interval, width in ((measured.sequential_relative_interval, 1.2), (measured.relative_interval, 5)):
        if interval is not None:
            axes.plot(interval, (place, place), color=colour, linewidth=width, solid_capstyle="butt")
    axes.plot(measured.relative_lift, place, marker=_marker(row.number), color=colour, markeredgecolor="white",
              markersize=9, linestyle="none")  # fmt: skip
    axes.annotate(_said(measured), (1.01, place), xycoords=("axes fraction", "data"), va="center", color=_INK,
                  fontsize=9)  # fmt: skip
    axes.xaxis.set_major_formatter(_as_percent)


def _said(measured: Measured) -> str:
    """The figures in words, for those who would else measure them with a ruler."""
    lift = f"{_percent(measured.relative_lift)}" if measured.relative_lift is not None else ""
    if measured.relative_interval is not None:
        lift += f" [{_percent(measured.relative_interval[0])}, {_percent(measured.relative_interval[1])}]"
    p_value = measured.adjusted_p_value if measured.adjusted_p_value is not None else measured.p_value
    return lift if p_value is None else f"{lift}\np {'< 0.0001' if p_value < 0.0001 else f'= {p_value:.4f}'}"


def _draw_course(axes: Axes, number: int, name: str, points: tuple[Point, ...]) -> None:
    colour, days = _colour(number), [_day(point) for point in points]
    lifts = [point.lift for point in points]
    axes.plot(days, lifts, color=colour, marker=_marker(number), markersize=4, label=name)
    judged = [(_day(point), *point.always_valid) for point in points if point.always_valid is not None]
    if judged:
        at, low, high = zip(*judged, strict=True)
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    at_one_look = [(_day(point), *point.interval) for point in points if point.interval is not None]
    if at_one_look:
        at, low, high = zip(*at_one_look, strict=True)
        axes.plot(at, low, at, high, color=colour, linewidth=0.8, linestyle=(0, (4, 3)))
    if points:
        axes.annotate(_percent(lifts[-1]), (days[-1], lifts[-1]), color=colour, fontweight="bold", xytext=(6, 0),
                      textcoords="offset points", va="center")  # fmt: skip


def _day(point: Point) -> float:
    """Days since 1970, as matplotlib counts dates."""
    return point.at.timestamp() / 86_400


def _figure(height_inches: float) -> Figure:
    import matplotlib  # noqa: PLC0415 - see the module's docstring
    from matplotlib.figure import Figure  # noqa: PLC0415

    # Letters stay letters, for those who search, copy or listen, and a $ in a name is no formula; and the same figures
    # give the same file.
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "segue", "text.parse_math": False, "font.size": 10}
    )
    return Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained", facecolor="white")


def _title(figure: Figure, axes: Axes, title: str, problems: tuple[str, ...]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", color=_INK, fontweight="bold")
    if problems:
        worst = problems[0] if len(problems[0]) <= _ALARM_CHARACTERS else problems[0][: _ALARM_CHARACTERS - 1] + "…"
        figure.suptitle(f"NOT TRUSTWORTHY\n{worst}", color=_ALARM, fontsize=9, fontweight="bold", x=0.01, ha="left")


def _explain(figure: Figure, words: str) -> None:
    figure.supxlabel(words, color=_FAINT, fontsize=8)


def _name_days(axes: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415

    locator = AutoDateLocator(maxticks=8)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_xlabel("up to (UTC)")


def _drawn(figure: Figure, format_: Format) -> bytes:
    picture = io.BytesIO()
    metadata = {"Date": None, "Creator": "Segue"} if format_ == "svg" else {"Software": "Segue"}
    figure.savefig(picture, format=format_, dpi=_DOTS_PER_INCH, metadata=metadata)
    return picture.getvalue()


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _as_percent(share: float, _: float) -> str:
    return f"{100 * share:+g} %" if share else "0"


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]
