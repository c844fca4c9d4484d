"""While no key is configured, whoever reaches the port may do everything, and a browser on this machine reaches it for
every page that it shows. So then a request must have been meant for this machine, and not come from another site.

* A page of another site may send some requests without asking first: its Origin tells.
* A name of another site may be made to lead to 127.0.0.1 (DNS rebinding): Host tells.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from app.errors import Forbidden


def refuse_other_sites(headers: Headers, allowed: Collection[str]) -> None:
    """allowed: origins that may call from a browser all the same. Raises Forbidden."""
    host = headers.get("host", "")
    if not _is_this_machine(host):
        raise Forbidden(f"header Host: {host!r} is not this machine, and no API key is configured (SEGUE_ADMIN_KEY)")
    origin = headers.get("origin")
    if origin is not None and origin not in allowed and origin.partition("://")[2] != host:
        raise Forbidden(f"header Origin: {origin!r} is another site (SEGUE_CORS_ORIGINS), and no API key is configured")


@lru_cache(maxsize=64)
def _is_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
