"""Logs and metrics, declared once; docs/metrics.md lists them, and a test compares."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

Metric = TypeVar("Metric", bound=MetricWrapperBase)

REQUESTS = Counter("segue_http_requests_total", "HTTP requests answered", ["method", "path", "status"])
REQUEST_SECONDS = Histogram(
    "segue_http_request_seconds",
    "Time from the first byte of a request to the last of its answer, in seconds",
    ["path"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
RECOMMENDATIONS = Counter("segue_recommendations_total", "Slates answered", ["route", "recommender"])
EXPLORED = Counter("segue_explored_total", "Slates answered in a drawn order", ["route"])
FALLBACKS = Counter("segue_fallbacks_total", "Slates that a later recommender of the chain had to fill", ["to"])
RECOMMENDER_FAILURES = Counter("segue_recommender_failures_total", "Recommenders that raised", ["recommender"])
EVENTS = Counter("segue_events_total", "Events received", ["outcome"])
LISTENS_UNRECORDED = Counter("segue_listens_unrecorded_total", "Next tracks given before their listen was durable")
IMPRESSIONS_LOST = Counter("segue_impressions_lost_total", "Shown slates that were never written", ["variant"])
IMPRESSIONS_WRITTEN = Counter("segue_impressions_written_total", "Shown slates written to Postgres")
EXPOSURES_WRITTEN = Counter("segue_exposures_written_total", "Exposures to experiments written to Postgres")
EXPOSURES_LOST = Counter(
    "segue_exposures_lost_total", "Exposures to experiments that were never written", ["experiment", "variant"]
)
VIEW_READS = Counter("segue_user_view_reads_total", "Where a user's past was read from", ["source"])
REFUSED = Counter("segue_refused_total", "Requests and connections turned away to protect the service", ["reason"])
QUEUED = Gauge("segue_queue_length", "What waits in each bounded queue", ["queue"], multiprocess_mode="livesum")
DEPENDENCY_ERRORS = Counter("segue_dependency_errors_total", "Failed calls of a dependency", ["dependency"])
DEPENDENCY_UP = Gauge(
    "segue_dependency_up", "1 while the dependency answers", ["dependency"], multiprocess_mode="livemin"
)
RELEASE_LOADED = Gauge(
    "segue_release_loaded_timestamp_seconds",
    "Unix time at which the served release was loaded; 0 without one",
    multiprocess_mode="livemin",
)
RELEASE_FAILURES = Counter("segue_release_load_failures_total", "Releases that could not be loaded")
CATALOG_ITEMS = Gauge("segue_catalog_items", "Items that can be shown", multiprocess_mode="livemax")
NEW_ITEMS = Gauge("segue_new_items", "Items newer than the served release", multiprocess_mode="livemax")

PRUNED_ROWS = Counter("segue_pruned_rows_total", "Rows that were kept for as long as the settings say", ["table"])
PRUNED_AT = Gauge(
    "segue_pruned_timestamp_seconds",
    "Unix time of the last complete round of pruning; 0 before the first",
    multiprocess_mode="max",
)

LIVE_EVENTS = Counter("segue_live_events_total", "Events that this process folded into its live signals")
LIVE_LAG = Gauge(
    "segue_live_lag_seconds",
    "Seconds since all committed events were in the live signals, of the worker that is most behind",
    multiprocess_mode="livemax",
)


def labelled(metric: Metric) -> Callable[..., Metric]:
    """`metric.labels`, for what is counted with every request: it searches for the label values, which costs more than
    counting does; this remembers the last 256."""
    return lru_cache(256)(metric.labels)


def configure_logging(level: str) -> None:
    """One line per record on standard error, times in UTC."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("alembic").setLevel(logging.WARNING)
