"""Many tasks on one connection: each gets its own answer, or hears in time that there is none."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import redis
import redis.asyncio

from app.storage.redis import open_async
from app.storage.redis_multiplexer import RedisMultiplexer, mapping

PATIENCE_SECONDS = 60.0


@asynccontextmanager
async def multiplexer(url: str) -> AsyncIterator[RedisMultiplexer]:
    cache = open_async(url, timeout_seconds=PATIENCE_SECONDS)
    yield RedisMultiplexer(cache)
    await cache.aclose()


async def connections(other: redis.asyncio.Redis) -> set[str]:
    """Those in this database that are named after the server; a service that other tests use may have some, too."""
    database = (await other.client_info())["db"]
    return {client["id"] for client in await other.client_list() if client["name"] and client["db"] == str(database)}


async def kill_connections(url: str) -> None:
    async with redis.asyncio.Redis.from_url(url) as other:
        open_ones = await connections(other)
        assert open_ones
        for client_id in open_ones:
            with suppress(redis.ResponseError):
                await other.client_kill_filter(_id=client_id)


def test_each_of_many_tasks_gets_its_own_answer_over_one_connection(redis_url: str) -> None:
    async def one(shared: RedisMultiplexer, n: int) -> list[object]:
        answer = await shared.ask(("SET", f"k{n}", n), ("GET", f"k{n}"), ("APPEND", f"k{n}", "!"), ("GET", f"k{n}"))
        return answer.replies

    async def scenario() -> None:
        async with redis.asyncio.Redis.from_url(redis_url) as other, multiplexer(redis_url) as shared:
            before = await connections(other)
            answers = await asyncio.gather(*(one(shared, n) for n in range(200)))
            assert answers == [[b"OK", str(n).encode(), len(str(n)) + 1, f"{n}!".encode()] for n in range(200)]
            assert len(await connections(other) - before) == 1

    asyncio.run(scenario())


def test_the_answer_names_the_server(redis_url: str) -> None:
    async def scenario() -> None:
        async with multiplexer(redis_url) as shared:
            server, (info,) = await shared.ask(("INFO", "server"))
            found = re.search(rb"run_id:(\w+)", bytes(info) if isinstance(info, bytes) else str(info).encode())
            assert found is not None
            assert found[1].decode() == server

    asyncio.run(scenario())


def test_a_refused_command_fails_its_own_task_alone(redis_url: str) -> None:
    async def scenario() -> None:
        async with multiplexer(redis_url) as shared:
            before = asyncio.create_task(shared.ask(("SET", "text", "x")))
            refused = asyncio.create_task(shared.ask(("GET", "text"), ("HGETALL", "text")))
            after = asyncio.create_task(shared.ask(("GET", "text")))
            with pytest.raises(redis.ResponseError):
                await refused
            assert (await before).replies == [b"OK"]
            assert (await after).replies == [b"x"]

    asyncio.run(scenario())


def test_whoever_gives_up_leaves_the_others_their_answers(redis_url: str) -> None:
    async def scenario() -> None:
        async with multiplexer(redis_url) as shared:
            await shared.ask(("SET", "k", "v"))
            leaving = asyncio.create_task(shared.ask(("BLPOP", "nothing", "0.2")))
            staying = asyncio.create_task(shared.ask(("GET", "k")))
            await asyncio.sleep(0)
            leaving.cancel()
            assert (await staying).replies == [b"v"]

    asyncio.run(scenario())


def test_a_connection_closed_while_idle_is_opened_again_unnoticed(redis_url: str) -> None:
    async def scenario() -> None:
        async with multiplexer(redis_url) as shared:
            await shared.ask(("SET", "k", "v"))
            for _ in range(3):
                await kill_connections(redis_url)
                answers = await asyncio.gather(*(shared.ask(("GET", "k")) for _ in range(5)))
                assert [answer.replies for answer in answers] == [[b"v"]] * 5

    asyncio.run(scenario())


async def answered_in_the_end(shared: RedisMultiplexer, *command: str) -> list[object]:
    """A server that does something else for a fifth of a second keeps silent, too."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return (await shared.ask(command)).replies
        except redis.TimeoutError:
            assert time.monotonic() < deadline, "it is not asked again"


def test_a_server_that_keeps_silent_fails_all_in_time_and_is_asked_again(redis_url: str) -> None:
    async def scenario() -> None:
        cache = open_async(redis_url, timeout_seconds=0.2)
        shared = RedisMultiplexer(cache)
        await answered_in_the_end(shared, "SET", "k", "v")
        started = time.monotonic()
        silent = await asyncio.gather(
            shared.ask(("BLPOP", "nothing", 0)), shared.ask(("GET", "k")), return_exceptions=True
        )
        assert [type(each) for each in silent] == [redis.TimeoutError, redis.TimeoutError]
        assert time.monotonic() - started >= 0.2
        assert await answered_in_the_end(shared, "GET", "k") == [b"v"]
        await cache.aclose()

    asyncio.run(scenario())


def test_no_server_is_an_error_of_redis() -> None:
    async def scenario() -> None:
        async with multiplexer("redis://127.0.0.1:1/0") as shared:
            with pytest.raises(redis.RedisError):
                await shared.ask(("PING",))

    asyncio.run(scenario())


def test_a_mapping_is_one_in_either_protocol() -> None:
    assert mapping([b"a", b"1", b"b", b"2"]) == mapping({b"a": b"1", b"b": b"2"}) == {b"a": b"1", b"b": b"2"}
