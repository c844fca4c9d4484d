"""The first page: what this is, and whether it is well."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Segue</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}
code{background:#8882;padding:.1em .3em;border-radius:.2em}</style>
<h1>Segue</h1>
<p>A recommendation service. Try <a href="/recommend?user_id=newcomer"><code>/recommend?user_id=newcomer</code></a>,
read the <a href="/docs">API</a>, look at <a href="/readyz">readiness</a> and <a href="/metrics">metrics</a>.</p>
</html>
"""


@router.get("/", response_class=HTMLResponse)
async def home() -> str:
    return _PAGE
