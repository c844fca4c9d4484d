"""What experiments have shown: whether to trust it, the figures, and their plots."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from app.api.admin_experiments import Key
from app.api.bodies import example, json_answer
from app.api.dependencies import ResourcesDep, require
from app.errors import Invalid
from app.experiments.course import course_of
from app.experiments.metrics import DEFAULT, Metric, metric_of, window_of
from app.experiments.plots import MEDIA_TYPES, Format, course_plot, intervals_plot
from app.experiments.results import Ask, Correction, results_of
from app.experiments.soundness import ESTIMAND

router = APIRouter(prefix="/admin/experiments", tags=["experiments"], dependencies=[Depends(require("admin"))])

MOST_METRICS = 20
_COUNTS = {"control": 2512, "treatment": 2488}
_MEASURED_CONTROL = {
    "variant": "control", "users": 2512, "waiting": 0, "mean": 0.0612, "difference": None, "interval": None,
    "p_value": None, "adjusted_p_value": None, "relative_lift": None, "relative_interval": None,
    "sequential_interval": None, "sequential_relative_interval": None, "sequential_p_value": None,
    "variance_reduction": None, "minimum_detectable_effect": None, "days_left": None, "missing": None,
}  # fmt: skip
_MEASURED = {
    "variant": "treatment", "users": 2488, "waiting": 0, "mean": 0.0701, "difference": 0.0087,
    "interval": [0.0053, 0.0121], "p_value": 4e-07, "adjusted_p_value": 4e-07, "relative_lift": 0.142,
    "relative_interval": [0.084, 0.203], "sequential_interval": [0.0028, 0.0146],
    "sequential_relative_interval": [0.045, 0.247], "sequential_p_value": 5e-05, "variance_reduction": 0.21,
    "minimum_detectable_effect": 0.0049, "days_left": 0.0, "missing": None,
}  # fmt: skip
METRIC = {
    "metric": "ctr", "unit": "share of items shown that got a click event", "of": "slates",
    "variants": [_MEASURED_CONTROL, _MEASURED],
}  # fmt: skip
SLICE = {"value": "2026-11-20", "counts": _COUNTS, "p_value": 0.73, "is_mismatch": False}
RATIO = {
    "is_mismatch": False, "p_value": 0.73, "threshold": 0.001, "counts": _COUNTS,
    "expected": {"control": 2500.0, "treatment": 2500.0},
    "by": {"day": [SLICE], "route": [SLICE | {"value": "established"}], "worker": [SLICE | {"value": "host-1:4711"}]},
}  # fmt: skip
LOSSES = {"lost": 0, "share": 0.0, "by_variant": {"control": 0, "treatment": 0}}


_PICTURE = {"schema": {"type": "string", "format": "binary"}, "example": "<svg …>"}


class SliceBody(BaseModel):
    """The users first exposed on one day, on one route, or by one worker."""

    model_config = example(**SLICE)

    value: str = Field(description="the day (UTC), route or worker; `(small)`: those with too few users, together")
    counts: dict[str, int] = Field(description="users by variant")
    p_value: float = Field(description="adjusted by Holm over the slices of this sort")
    is_mismatch: bool = Field(description="whether the p-value is below the threshold")


class SampleRatioBody(BaseModel):
    """Whether every variant has the share of the users that its weight promises. Look at this first."""

    model_config = example(**RATIO)

    is_mismatch: bool = Field(description="true: something decides who is counted, and no figure can be believed")
    p_value: float = Field(description="of a chi-square test; an exact one where few users are expected")
    threshold: float = Field(description="a p-value below it is a mismatch")
    counts: dict[str, int] = Field(description="users by variant: in one variant only, and not left out")
    expected: dict[str, float] = Field(description="users by variant, as the weights would have it")
    by: dict[str, list[SliceBody]] = Field(description="the same by `day`, `route` and `worker` of the first exposure")


class LossesBody(BaseModel):
    """Exposures that happened and could not be written down; above 0.1 % there is no result, but 409."""

    model_config = example(**LOSSES)

    lost: int = Field(description="of all variants")
    share: float = Field(description="of all exposures, 0–1")
    by_variant: dict[str, int] = Field(description="lost by each")


class MeasuredBody(BaseModel):
    """One metric of one variant, and how it differs from the control's. Null: the data can't tell."""

    model_config = example(**_MEASURED)

    variant: str = Field(description="its name", examples=["treatment"])
    users: int = Field(description="in the figures; with a `window`, those whose window is over")
    waiting: int = Field(description="users whose window is not over; they are in no figure")
    mean: float | None = Field(description="as observed, in the metric's unit; null: nobody, or nothing to divide by")
    difference: float | None = Field(description="to the control, adjusted where CUPED is; null for the control")
    interval: tuple[float, float] | None = Field(description="of the difference, at 1 - alpha, for one planned look")
    p_value: float | None = Field(description="two-sided, for one planned look")
    adjusted_p_value: float | None = Field(description="by `correction`, over all metrics and variants of this answer")
    relative_lift: float | None = Field(description="the difference as a share of the control's mean; 0.1: 10 % more")
    relative_interval: tuple[float, float] | None = Field(description="of the lift (Fieller)")
    sequential_interval: tuple[float, float] | None = Field(
        description="of the difference, holding however often one looks; null while users' totals still grow"
    )
    sequential_relative_interval: tuple[float, float] | None = Field(description="of the lift, the same way")
    sequential_p_value: float | None = Field(description="may be looked at every day, and be acted upon")
    variance_reduction: float | None = Field(description="share of the variance that CUPED took away; null: not used")
    minimum_detectable_effect: float | None = Field(
        description="least difference that so many users show with a power of `power`, in the metric's unit"
    )
    days_left: float | None = Field(description="until a lift of `effect` shows; 0: enough users; null: stopped")
    missing: str | None = Field(description="why there is no comparison; null: there is one")


class MetricBody(BaseModel):
    """One metric, of every variant."""

    model_config = example(**METRIC)

    metric: str = Field(description="as asked for")
    unit: str = Field(description="of the mean and the difference, in words")
    of: Literal["users", "slates"] = Field(
        description="`users`: what they did after their first exposure; `slates`: what the experiment's pages brought"
    )
    variants: list[MeasuredBody] = Field(description="the control first")


class ResultsBody(BaseModel):
    """The result of one run of an experiment, what decides over its worth first."""

    model_config = example(
        key="feed-ranker", run=1, trustworthy=True, problems=[], sample_ratio=RATIO, lost_exposures=LOSSES,
        left_out={"two_variants": 0, "forced": 1, "bot": 0, "explored": 51},
        estimand=ESTIMAND["shared"],
        data="shared", holdout=False, status="running", started_at="2026-11-08T09:30:00Z", stopped_at=None,
        until="2026-11-22T09:30:00Z", control="control", window_hours=168.0, alpha=0.05, winsor=None, cuped=True,
        correction="holm", notes=[], metrics=[METRIC],
    )  # fmt: skip

    key: str = Field(description="of the experiment")
    run: int = Field(description="which of its runs, from 1")
    trustworthy: bool = Field(description="false where `problems` names any")
    problems: list[str] = Field(description="what takes the trust out of the figures below, the worst first")
    sample_ratio: SampleRatioBody = Field(description="whether every variant has its share of the users")
    lost_exposures: LossesBody = Field(description="exposures that could not be written down")
    left_out: dict[str, int] = Field(
        description="users in no figure, by reason: `two_variants`, `forced`, `bot`, `explored`"
    )
    estimand: str = Field(description="what the difference is an estimate of, in words")
    data: Literal["shared", "split"] = Field(description="whether the arms share counters and training data")
    holdout: bool = Field(description="whether the control is kept out of everything that was shipped since")
    status: Literal["running", "stopped"] = Field(description="as of now")
    started_at: datetime = Field(description="RFC 3339, UTC")
    stopped_at: datetime | None = Field(description="null: it runs")
    until: datetime = Field(description="what came later does not count: now, or the end of a stopped experiment")
    control: str = Field(description="the variant that the others are compared with")
    window_hours: float | None = Field(description="how long each user is watched; null: to `until`")
    alpha: float = Field(description="of tests and intervals")
    winsor: float | None = Field(description="quantile at which the largest values were cut, pooled over the variants")
    cuped: bool = Field(description="whether to adjust by what users did before their first exposure")
    correction: Correction = Field(description="of the p-values")
    notes: list[str] = Field(description="what else to know of the figures")
    metrics: list[MetricBody] = Field(description="in the order asked for")


class ResultsQuery(BaseModel):
    """What a result is asked for."""

    metric: list[str] = Field(
        default=list(DEFAULT),
        min_length=1,
        max_length=MOST_METRICS,
        description="repeatable: a name like `ctr`, or KIND:AGGREGATE like `share:count`",
        examples=["likes_per_user"],
    )
    alpha: float = Field(default=0.05, gt=0, le=0.5, description="of two-sided tests and intervals, 0–0.5")
    window: str = Field(
        default="all", max_length=8, description="how long a user is watched: `1h` … `365d`, or `all`", examples=["14d"]
    )
    winsor: float | None = Field(
        default=None, ge=0.5, lt=1, description="quantile at which to cut the largest values; default: cut nothing"
    )
    cuped: bool = Field(default=True, description="adjust by what users did before their first exposure")
    correction: Correction = Field(default="holm", description="of the p-values, over this answer's comparisons")
    run: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="which run; default: the latest that was started"
    )
    include: list[Literal["forced", "bot", "explored"]] = Field(
        default=[], max_length=3, description="repeatable: analyse these users all the same"
    )
    effect: float = Field(default=0.05, gt=0, le=100, description="relative lift that `days_left` is about")
    power: float = Field(default=0.8, ge=0.5, lt=1, description="how surely it is to be found, 0.5–1")

    def ask(self, key: str) -> Ask:
        """Raises Invalid for a metric or a window that means nothing."""
        return Ask(
            key=key,
            metrics=_metrics(self.metric),
            run=self.run,
            alpha=self.alpha,
            window=window_of(self.window),
            winsor=self.winsor,
            cuped=self.cuped,
            correction=self.correction,
            included=frozenset(self.include),
            effect=self.effect,
            power=self.power,
        )


@router.get("/{key}/results", response_model=ResultsBody, summary="What an experiment has shown")
def get_results(resources: ResourcesDep, key: Key, query: Annotated[ResultsQuery, Query()]) -> Response:
    """Read `trustworthy` and `problems` first.

    409 for what was never started, and where more than 0.1 % of the exposures were lost: then no figure could be
    believed. 503 where two results are being worked out already, or this one takes more than a minute.
    """
    found = results_of(resources.engine, query.ask(key), impressions_days=resources.settings.impressions_days)
    return json_answer(found)


class PlotQuery(ResultsQuery):
    """What a plot is asked for: what its result would be, and how to draw it."""

    kind: Literal["intervals", "lift"] = Field(
        default="intervals", description="`intervals`: each metric's lift; `lift`: the first metric's, day by day"
    )
    format: Format = Field(default="svg", description="`svg` or `png`")
    window: str | None = Field(  # type: ignore[assignment]  # wider than of a result
        default=None,
        max_length=8,
        description="`1h` … `365d`, or `all`; default: `all` for intervals, `1d` for a lift, which needs an end",
        examples=["14d"],
    )

    def ask(self, key: str) -> Ask:
        """Raises Invalid for a metric or a window that means nothing."""
        window = self.window or ("all" if self.kind == "intervals" else "1d")
        return ResultsQuery(**self.model_dump(include=set(ResultsQuery.model_fields)) | {"window": window}).ask(key)


@router.get(
    "/{key}/results/plot",
    summary="The same as a picture",
    response_class=Response,
    responses={200: {"content": {"image/svg+xml": _PICTURE, "image/png": _PICTURE}, "description": "The picture"}},
)
def get_plot(resources: ResourcesDep, key: Key, query: Annotated[PlotQuery, Query()]) -> Response:
    """A result that can't be trusted says so in red above the picture. 409 as for the result."""
    days = resources.settings.impressions_days
    if query.kind == "lift":
        picture = course_plot(course_of(resources.engine, query.ask(key), impressions_days=days), query.format)
    else:
        picture = intervals_plot(results_of(resources.engine, query.ask(key), impressions_days=days), query.format)
    return Response(picture, media_type=MEDIA_TYPES[query.format])


def _metrics(names: list[str]) -> tuple[Metric, ...]:
    if len(set(names)) < len(names):
        raise Invalid.field(("query", "metric"), "names the same metric twice")
    return tuple(metric_of(name) for name in names)
