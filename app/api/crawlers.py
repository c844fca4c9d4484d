"""Whether a crawler asks: what it was shown is nobody's choice, so its exposures to experiments are marked.

By the words that crawlers put into their User-Agent, as public lists of them have them (Matomo's, isbot's). Most
callers are back ends, whose own agent says nothing: they hand on their visitor's in `X-Visitor-User-Agent`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from starlette.datastructures import Headers

VISITORS = "x-visitor-user-agent"

# Cubot is a telephone.
_WORDS = re.compile(
    r"(?<!cu)bot|crawl|spider|slurp|archiver|facebookexternalhit|embedly|preview|mediapartners|inspectiontool"
    r"|headless|phantomjs|lighthouse|pagespeed|pingdom|scrapy|feedfetcher",
    re.IGNORECASE,
)


def is_crawler(headers: Headers) -> bool:
    """By the visitor's agent, where the caller hands it on, else the caller's own."""
    return _is_crawler(headers.get(VISITORS) or headers.get("user-agent", ""))


@lru_cache(1_000)
def _is_crawler(agent: str) -> bool:
    return _WORDS.search(agent) is not None
