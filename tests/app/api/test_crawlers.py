"""Crawlers are told by their agent, or by the one that a back end hands on."""

import pytest
from starlette.datastructures import Headers

from app.api.crawlers import is_crawler

CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
GOOGLE = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"


@pytest.mark.parametrize(
    "agent",
    [
        GOOGLE,
        "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
        "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)",
        "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
        "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
        CHROME.replace("Chrome", "HeadlessChrome"),
    ],
)
def test_crawlers_say_what_they_are(agent: str) -> None:
    assert is_crawler(Headers({"User-Agent": agent}))


@pytest.mark.parametrize("agent", [CHROME, "python-httpx/0.28.1", "Mozilla/5.0 (Linux; Android 9; CUBOT X19)", ""])
def test_others_are_none(agent: str) -> None:
    assert not is_crawler(Headers({"User-Agent": agent}))
    assert not is_crawler(Headers({}))


def test_the_visitors_agent_counts_where_a_back_end_hands_it_on() -> None:
    assert is_crawler(Headers({"User-Agent": "python-httpx/0.28.1", "X-Visitor-User-Agent": GOOGLE}))
    assert not is_crawler(Headers({"User-Agent": "our-seo-bot", "X-Visitor-User-Agent": CHROME}))
