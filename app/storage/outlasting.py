"""Waiting for a Postgres that is away, as a start does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg2
from sqlalchemy.exc import InterfaceError, OperationalError

from app.storage.database import cause_of

T = TypeVar("T")
AGAIN_SECONDS = 0.5
SAID_EVERY_SECONDS = 5.0
OUTAGE_ERRORS = (OperationalError, InterfaceError, psycopg2.OperationalError, psycopg2.InterfaceError)
"""What a Postgres that is away, or goes away, is noticed by."""

log = logging.getLogger(__name__)


def outlasting(ask: Callable[[], T], seconds: float) -> T:
    """What `ask` gives; it is asked again for as long as Postgres is away, and after so many seconds its error passes.

    ask: may be cut short anywhere; what it changes it does in one transaction
    """
    started, said_at = time.monotonic(), -SAID_EVERY_SECONDS
    while True:
        try:
            return ask()
        except OUTAGE_ERRORS as error:
            now = time.monotonic()
            if now - started >= seconds:
                raise
            if now - said_at >= SAID_EVERY_SECONDS:
                log.warning("waiting for Postgres: %s", cause_of(error))
                said_at = now
            time.sleep(AGAIN_SECONDS)
