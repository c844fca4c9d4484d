"""The grammar of metrics, and of windows."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.errors import Invalid
from app.experiments.metrics import NAMED, metric_of, window_of


@pytest.mark.parametrize("name", NAMED)
def test_a_named_metric_is_short_for_another(name: str) -> None:
    metric, same = metric_of(name), metric_of(NAMED[name])

    assert (metric.kind, metric.aggregate, metric.unit) == (same.kind, same.aggregate, same.unit)
    assert metric.name == name


def test_a_custom_metric_is_a_kind_and_an_aggregate() -> None:
    shares = metric_of("share:users")
    assert (shares.kind, shares.is_ratio, shares.is_of_slates) == ("share", False, False)
    assert shares.unit == "share of users with a share event"

    assert metric_of("listen:mean").is_ratio
    assert metric_of("purchase:rate").is_of_slates
    assert metric_of("skip:count_per_session").is_per_session
    assert metric_of("impression:count").unit == "impression events per user"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("revenue", "give one of ctr"),
        ("like:median", "give one of ctr"),
        ("unlike:count", "give one of ctr"),
        ("like:", "give one of ctr"),
        ("like:sum", "only rating and listen"),
        ("click:mean", "only rating and listen"),
        ("impression:rate", "being on screen"),
        ("like:count'; drop table users; --", "give one of ctr"),
    ],
)
def test_what_means_nothing_is_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as refused:
        metric_of(name)
    assert repr(name) in refused.value.detail or name in refused.value.detail


def test_windows() -> None:
    assert window_of("14d") == timedelta(days=14)
    assert window_of("36h") == timedelta(hours=36)
    assert window_of("all") is None


@pytest.mark.parametrize("text", ["", "d", "0d", "-1d", "1w", "366d", "²d", "1.5d", "99999999999999999999h"])
def test_other_windows_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="window"):
        window_of(text)
