"""`segue what-if`: what another order would have earned, estimated from the pages whose order was drawn."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from app.cli.surroundings import opened
from app.errors import Conflict, Invalid
from app.settings import FEEDBACK_KINDS

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from app.experiments.explored import Selection
    from app.experiments.what_if import Target
    from models.evaluation.off_policy.intervals import Interval
    from models.evaluation.off_policy.report import Estimate, Report

TABLE_WIDTH = 130
"""Narrower, and the figures are torn apart."""


class Order(StrEnum):
    """Orders that can be asked about without a file of scores."""

    SERVED = "served"
    POPULARITY = "popularity"
    NEWEST = "newest"


def what_if(  # noqa: PLR0917 - a command's options, which Typer gives by name
    order: Annotated[Order, typer.Option(help="of the page's candidates, before the draw")] = Order.SERVED,
    scores: Annotated[Path | None, typer.Option(help="instead: a CSV with item_id,score; the highest first")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="of the draw, 0 for none; unset: as each page was drawn")
    ] = None,
    metric: Annotated[str, typer.Option(help="a kind of event; a place earns 1 where its item got one")] = "click",
    places: Annotated[int, typer.Option(min=1, max=50, help="of the page, from the top")] = 3,
    days: Annotated[float, typer.Option(min=0, help="pages shown in so many last days")] = 30,
    settle_minutes: Annotated[float, typer.Option(min=0, help="leave out pages that young: people still look")] = 60,
    surface: Annotated[str | None, typer.Option(help="only pages of this surface")] = None,
    route: Annotated[str | None, typer.Option(help="only pages of this route")] = None,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="confidence of the intervals")] = 0.95,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write every figure to this file")] = None,
) -> None:
    """What would another order have earned? From the pages that exploration drew; docs/what-if.md says how to read it.

    Ends with an error where the log is wrong, or holds too little of what the other order would have shown.
    """
    from app.experiments.explored import Selection
    from models.evaluation.off_policy.log import MissingSupport, WrongLog
    from models.evaluation.off_policy.report import report_on

    _refuse_other_metrics(metric)
    until = datetime.now(UTC) - timedelta(minutes=settle_minutes)
    selection = Selection(until - timedelta(days=days), until, metric, places, surface, route)
    wanted = None if scores is None else read_scores(scores)
    try:
        with opened() as (_, engine), engine.connect() as db:
            report = report_on(_log(db, selection, order, wanted, temperature), level=level)
        _print(report, _question(order, scores, temperature), metric)
        if json_file is not None:
            json_file.write_bytes(orjson.dumps(as_json(report), option=orjson.OPT_INDENT_2))
        report.require()
    except WrongLog as error:
        raise Conflict(f"the log is wrong: {error}") from error
    except MissingSupport as error:
        raise Conflict(f"the log can't answer this: {error}") from error


def _log(
    db: Connection, selection: Selection, order: Order, scores: dict[str, float] | None, temperature: float | None
) -> Any:
    from app.experiments import what_if as asked

    if scores is not None:
        by_row = asked.rows_of(db, scores)
    elif order is Order.POPULARITY:
        by_row = asked.popularity_before(db, selection)
    elif order is Order.NEWEST:
        by_row = asked.newness(db)
    else:
        by_row = None
    target: Target = asked.Target(by_row, temperature)
    return asked.log_of(db, selection, target)


def read_scores(path: Path) -> dict[str, float]:
    """By item id. Raises Invalid, naming the line."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames is None or {"item_id", "score"} - set(rows.fieldnames):
                raise Invalid(f"--scores {path}: its first line must name the columns item_id and score")
            return {row["item_id"]: _score(path, rows.line_num, row["score"]) for row in rows}
    except OSError as error:
        raise Invalid(f"--scores {path}: {error.strerror}") from error


def _score(path: Path, line: int, value: str | None) -> float:
    try:
        score = float(value or "")
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise Invalid(f"--scores {path}, line {line}: score {value!r} is not a number")
    return score


def _refuse_other_metrics(metric: str) -> None:
    known = [kind for kind in FEEDBACK_KINDS if kind != "impression"]
    if metric not in known:
        raise Invalid(f"--metric {metric!r}: there are {', '.join(known)}")


def _question(order: Order, scores: Path | None, temperature: float | None) -> str:
    base = f"the order of {scores}" if scores is not None else f"the order {order.value!r}"
    if temperature is None:
        return f"{base}, drawn as boldly as it was"
    return f"{base}, not drawn" if temperature == 0 else f"{base}, drawn at temperature {temperature:g}"


def _print(report: Report, question: str, metric: str) -> None:
    out = Console()
    out.width = max(out.width, TABLE_WIDTH)
    places = "place" if report.places == 1 else f"{report.places} places"
    for line in (
        f"What if: {question}. From {report.lists:,} drawn pages of {report.users:,} users; the first {places}.",
        f"Earned as shown: {_interval(report.earned)} {metric}s a page,",
        f"at the first place {_interval(report.earned_first)}.",
        "Another order of the same candidates; promotions stay where they were.",
        f"Shown as often as logged: {_odds(report.shown_as_logged.p_value)} (chi-square, p).",
    ):
        out.print(line, highlight=False, markup=False)
    is_wrong = report.wrong_log is not None
    out.print(_table(f"{metric}s a page", report.of_lists, withheld=is_wrong))
    out.print(_table(f"{metric}s at the first place", report.of_first, withheld=is_wrong))
    for estimate in (*report.of_lists, *report.of_first):
        method = estimate.method
        out.print(f"{method.name}: assumes {method.assumption}. {method.source}.", highlight=False, markup=False)


def _table(title: str, estimates: Sequence[Estimate], *, withheld: bool) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("estimator")
    for column in ("estimate", "more than shown", "effective pages", "mean weight (p)"):
        table.add_column(column, justify="right")
    table.add_column("refused")
    for each in estimates:
        hidden = withheld or each.refusal is not None
        tested = "" if each.mean_weight is None else f"{each.mean_weight.mean:.3f} ({_odds(each.mean_weight.p_value)})"
        table.add_row(
            each.method.name,
            "" if hidden else _interval(each.value),
            "" if hidden else _interval(each.difference, signed=True),
            f"{each.effective_size:,.0f}",
            tested,
            "the log is wrong" if withheld else each.refusal or "",
        )
    return table


def _interval(interval: Interval, *, signed: bool = False) -> str:
    form = "+.4f" if signed else ".4f"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _odds(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def as_json(report: Report) -> dict[str, Any]:
    """Every figure; what was refused has its reason and no figures."""
    return {
        "pages": report.lists,
        "users": report.users,
        "places": report.places,
        "earned": report.earned._asdict(),
        "earned_at_first_place": report.earned_first._asdict(),
        "shown_as_logged": report.shown_as_logged._asdict(),
        "wrong_log": report.wrong_log,
        "missing_support": report.missing_support,
        "pages_earn": [_estimate_as_json(each, report) for each in report.of_lists],
        "first_place_earns": [_estimate_as_json(each, report) for each in report.of_first],
    }


def _estimate_as_json(estimate: Estimate, report: Report) -> dict[str, Any]:
    refusal = report.wrong_log or estimate.refusal
    figures = {"estimate": estimate.value._asdict(), "difference": estimate.difference._asdict()}
    return {
        **estimate.method._asdict(),
        **({} if refusal else figures),
        "effective_pages": estimate.effective_size,
        "mean_weight": None if estimate.mean_weight is None else estimate.mean_weight._asdict(),
        "refusal": refusal,
    }
