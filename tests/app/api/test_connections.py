"""What the protocol says by itself never lies in another answer, nor in its place."""

import asyncio
from functools import partial

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from app.api.connections import HEAD_BYTES, ConnectionLimits, PatientProtocol

LONG = b"y" * (HEAD_BYTES + 1)
CHUNKED = b"POST /second HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
AFTER = {
    "head without end": b"GET /second HTTP/1.1\r\nHost: x\r\nX-Long: " + LONG,
    "no HTTP": b"\x00\r\n\r\n",
    "no chunk": CHUNKED + b"no length\r\n",
}
HALF = b"half an answer; "


def received(first: bytes, then: bytes, *, begins: bool) -> bytes:
    """Everything that a client gets who sends the first, and the other once the application has the first in hand."""

    async def scenario() -> bytes:
        in_hand = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            headers = [(b"content-length", str(2 * len(HALF)).encode())]
            if begins:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": HALF, "more_body": True})
            in_hand.set()
            while (await receive())["type"] != "http.disconnect":
                pass

        config = Config(app, lifespan="off", log_config=None, ws="none")
        limits = ConnectionLimits(connections=10, client_seconds=60)
        made = partial(PatientProtocol, config=config, server_state=ServerState(), app_state={}, limits=limits)
        async with await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(first)
            await in_hand.wait()
            got = await reader.readuntil(HALF) if begins else b""
            writer.write(then)
            try:
                while more := await reader.read(65_536):
                    got += more
            except ConnectionResetError:
                pass
            writer.close()
            return got

    return asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("then", AFTER.values(), ids=AFTER)
def test_a_second_request_that_is_refused_leaves_the_first_answer_alone(then: bytes, begins: bool) -> None:
    got = received(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n", then, begins=begins)
    assert got.count(b"HTTP/1.1 ") == begins
    assert got.endswith(HALF if begins else b"")


@pytest.mark.parametrize(("then", "status"), [(b"0\r\nX-Trailer: " + LONG, 431), (b"no length\r\n", 400)])
@pytest.mark.parametrize("begins", [True, False])
def test_a_body_that_is_refused_is_answered_unless_an_answer_has_begun(then: bytes, status: int, begins: bool) -> None:
    got = received(CHUNKED, then, begins=begins)
    assert got.count(b"HTTP/1.1 ") == 1
    assert got.startswith(f"HTTP/1.1 {200 if begins else status} ".encode())
