"""Answers leave in one segment each, in order, and as soon as they are complete."""

import asyncio
from collections.abc import Iterable
from functools import partial

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from app.api.connections import ConnectionLimits, PatientProtocol
from app.api.gathering_transport import GATHERED_BYTES, GatheringTransport


class Segments(asyncio.Transport):
    """What a transport is given to send, call by call; it says so in a log that others may share."""

    def __init__(self, log: list[str] | None = None) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False
        self._log = [] if log is None else log

    def writelines(self, list_of_data: Iterable[bytes]) -> None:  # type: ignore[override]
        self.sent.append(b"".join(list_of_data))
        self._log.append("sent")

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


async def turn() -> None:
    await asyncio.sleep(0)


def test_what_is_not_complete_is_sent_at_the_end_of_the_turn_and_a_lot_at_once() -> None:
    async def scenario() -> None:
        below = Segments()
        transport = GatheringTransport(below, asyncio.get_running_loop())
        transport.write(b"head")
        transport.write(b"body")
        assert below.sent == []
        await turn()
        assert below.sent == [b"headbody"]
        transport.write(b"more")
        transport.write(b"y" * GATHERED_BYTES)
        assert below.sent[1:] == [b"more" + b"y" * GATHERED_BYTES]
        await turn()
        assert len(below.sent) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(("ends", "sent"), [("close", [b"last"]), ("abort", [])])
def test_closing_sends_what_is_left_and_aborting_does_not(ends: str, sent: list[bytes]) -> None:
    async def scenario() -> None:
        below = Segments()
        transport = GatheringTransport(below, asyncio.get_running_loop())
        transport.write(b"last")
        getattr(transport, ends)()
        await turn()
        assert below.closed
        assert below.sent == sent

    asyncio.run(scenario())


def test_nothing_is_sent_where_the_client_is_gone() -> None:
    async def scenario() -> None:
        below = Segments()
        transport = GatheringTransport(below, asyncio.get_running_loop())
        transport.write(b"too late")
        below.closed = True
        await turn()
        assert below.sent == []

    asyncio.run(scenario())


def test_an_answer_is_one_segment_and_waits_for_no_other() -> None:
    """Two requests are taken up in the same turn; the second one's work begins when the first one's answer is out."""
    log: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        log.append(f"works on {scope['path']}")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def scenario() -> list[Segments]:
        config = Config(app, lifespan="off", log_config=None, ws="none")
        limits = ConnectionLimits(connections=10, client_seconds=60)
        made = partial(PatientProtocol, config=config, server_state=ServerState(), app_state={}, limits=limits)
        clients = [Segments(log), Segments(log)]
        for client, path in zip(clients, ("/first", "/second"), strict=True):
            protocol = made()
            protocol.connection_made(client)
            protocol.data_received(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while len(log) < 4:
            await turn()
        return clients

    for client in asyncio.run(asyncio.wait_for(scenario(), 60)):
        assert [segment.count(b"\r\n\r\nok") for segment in client.sent] == [1]
    assert log == ["works on /first", "sent", "works on /second", "sent"]
