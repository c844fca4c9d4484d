"""Connections to Redis and the versions hash that every worker reads with each request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

VERSIONS_KEY = "segue:versions"

# Within one epoch a version only moves forward, whoever writes last; another epoch (a restored database)
# always wins. What another life of the server left is dropped: it may be old.
_PUBLISH = """
local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
if redis.call('HGET', KEYS[1], 'server') ~= server then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'server', server)
end
for i = 1, #ARGV, 2 do
  local old, new = redis.call('HGET', KEYS[1], ARGV[i]), ARGV[i + 1]
  local old_epoch, old_seq = string.match(old or '', '^(.*):(%d+)$')
  local new_epoch, new_seq = string.match(new, '^(.*):(%d+)$')
  if old_epoch ~= new_epoch or tonumber(old_seq) < tonumber(new_seq) then
    redis.call('HSET', KEYS[1], ARGV[i], new)
  end
end
"""


def open_sync(url: str, *, timeout_seconds: float) -> redis.Redis:
    """A client for threads. Answers are bytes; nothing is retried, the callers know better."""
    return redis.Redis.from_url(url, **_options(timeout_seconds), retry=Retry(NoBackoff(), 0))


def open_async(url: str, *, timeout_seconds: float) -> redis.asyncio.Redis:
    """A client for the event loop. One retry: a connection that the server closed while idle is not news; that it
    says nothing is, and is not waited for twice.

    `CLIENT GETNAME` tells on each connection the run id of the server, which is another after each start.
    """
    return redis.asyncio.Redis.from_url(
        url,
        **_options(timeout_seconds),
        retry=AsyncRetry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        redis_connect_func=_name_after_the_server,
    )


async def _name_after_the_server(connection: redis.asyncio.Connection) -> None:
    # Asked for once per connection: INFO takes the server longer than everything that a request asks.
    await connection.on_connect()
    await connection.send_command("INFO", "server")
    info = cast(bytes, await connection.read_response())
    run_id = re.search(rb"^run_id:(\w+)", info, re.MULTILINE)
    if run_id is None:
        raise redis.ConnectionError("INFO does not tell the server's run_id")
    await connection.send_command("CLIENT", "SETNAME", run_id[1])
    await connection.read_response()


def publish_versions(cache: redis.Redis, versions: Mapping[str, str]) -> None:
    """Copies the versions of Postgres to where every request sees them.

    Raises RedisError where Redis is away: whoever calls decides whether that matters.
    """
    arguments = [part for pair in versions.items() for part in pair]
    cache.eval(_PUBLISH, 1, VERSIONS_KEY, *arguments)


async def ping(cache: redis.asyncio.Redis) -> None:
    """Raises RedisError where Redis is away."""
    await cache.execute_command("PING")  # type: ignore[no-untyped-call]


def _options(timeout_seconds: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "decode_responses": False,
        "health_check_interval": 0,
    }
