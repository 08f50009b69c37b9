"""A simulated Share for thousands of accounts: part of ``shards.py``, which runs it in a process of its own.

Nothing is kept but counts: the readings of each account follow from its number, and a session id says whose it is and
which of the account's sessions. So a poll costs little next to what it costs the daemon. Everything that goes wrong at
Share is left to ``dexcom2mqtt/demo/share_service.py``.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from dexcom2mqtt.demo.share_service import usual_delay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

CADENCE: Final = 300.0
"""Seconds from one reading of an account to the next."""
DAY: Final = 86400.0
PASSWORD: Final = "the password"  # noqa: S105  # of simulated accounts
OFFSET_MIN: Final = -240
"""The wearers' offset from UTC, in minutes."""

_ROOT: Final = "/ShareWebServices/Services"
_LATEST: Final = 30.0  # seconds by which every reading has arrived
_NO_ID: Final = "00000000-0000-0000-0000-000000000000"
_ID: Final = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-4000-8000-0000000000[0-9a-f]{2}")
_DELAY: Final = usual_delay()
_GOLDEN: Final = (math.sqrt(5) - 1) / 2  # its multiples spread evenly between whole numbers


class Taken(NamedTuple):
    """A reading, taken at ``date`` (Unix milliseconds); Share has it from ``arrives`` (Unix seconds) on."""

    date: int
    mg_dl: int
    arrives: float


class Tally(NamedTuple):
    """What Share was asked, for each account by its number."""

    sign_ins: list[int]
    reads: list[int]
    outdated: list[int]
    """Reads with a session that was not the account's newest: two processes asked at once."""


def key_of(number: int) -> str:
    """Return the account's key in the configuration."""
    return f"a{number}"


def username_of(number: int) -> str:
    """Return the account's user name at Share."""
    return f"user{number}@example.com"


def readings(number: int, since: float, until: float) -> Iterator[Taken]:
    """Yield the readings of an account that arrive at Share after ``since`` and by ``until``, oldest first."""
    phase = number * _GOLDEN % 1
    first, last = (math.floor(at / CADENCE - phase) for at in (since - _LATEST, until))
    for slot in range(first, last + 1):
        chance = (number * 7919 + slot * 104_729) % 1000
        taken = (slot + phase) * CADENCE + chance / 2000 - 0.25  # within a quarter of a second
        arrives = taken + _DELAY((number * 40_503 + slot * 611_953) % 1000 / 1000)
        if since < arrives <= until:
            yield Taken(round(taken * 1000), round(130 + 60 * math.sin(slot / 20 + number)), arrives)


def serve(count: int, pipe: Connection) -> None:
    """Run the service for so many accounts; send its URL first, and a Tally whenever the pipe asks, until ``end``."""
    for number in (signal.SIGINT, signal.SIGTERM):  # may be sent to the whole group; the pipe says when to end
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_serve(Crowd(count), pipe))


async def _serve(crowd: Crowd, pipe: Connection) -> None:
    end = asyncio.Event()

    def asked() -> None:
        if pipe.recv() == "end":
            end.set()
        else:
            pipe.send(crowd.tally)

    server = await asyncio.start_server(crowd.answer_all, "127.0.0.1", 0, backlog=4096)
    pipe.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{_ROOT}")
    asyncio.get_running_loop().add_reader(pipe.fileno(), asked)
    await end.wait()
    server.close()


class Crowd:
    """The accounts at Share."""

    def __init__(self, count: int) -> None:
        self.tally = Tally([0] * count, [0] * count, [0] * count)
        self._numbers = {username_of(number): number for number in range(count)}

    async def answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"(?i)\r\ncontent-length: *(\d+)", head)
                content = await reader.readexactly(int(length[1]) if length else 0)
                status, answer = self._answer(head.split(" ", 2)[1], content)
                lines = (
                    f"HTTP/1.1 {status.value} {status.phrase}",
                    f"Date: {formatdate(time.time(), usegmt=True)}",
                    "Content-Type: application/json",
                    f"Content-Length: {len(answer)}",
                )
                writer.write("\r\n".join([*lines, "", ""]).encode() + answer.encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has closed the connection, or was killed
        finally:
            writer.close()

    def _answer(self, target: str, content: bytes) -> tuple[HTTPStatus, str]:
        url = urlsplit(target)
        match url.path.rpartition("/")[2]:
            case "AuthenticatePublisherAccount":
                number = self._numbers[json.loads(content)["accountName"]]
                return HTTPStatus.OK, json.dumps(_id(number, 0))
            case "LoginPublisherAccountById":
                number, _ = _parsed(json.loads(content)["accountId"])
                self.tally.sign_ins[number] += 1
                return HTTPStatus.OK, json.dumps(_id(number, self.tally.sign_ins[number]))
            case "ReadPublisherLatestGlucoseValues":
                return HTTPStatus.OK, self._read(parse_qs(url.query))
        return HTTPStatus.NOT_FOUND, ""

    def _read(self, query: dict[str, list[str]]) -> str:
        if query["sessionId"][0] == _NO_ID:
            return ""
        number, session = _parsed(query["sessionId"][0])
        self.tally.reads[number] += 1
        self.tally.outdated[number] += session != self.tally.sign_ins[number]
        now, minutes = time.time(), int(query["minutes"][0])
        known = [each for each in readings(number, now - minutes * 60, now) if each.date > (now - minutes * 60) * 1000]
        return f"[{','.join(map(_record, known[: -1 - int(query['maxCount'][0]) : -1]))}]"


def _id(number: int, session: int) -> str:
    return f"{number:08x}-{session:04x}-4000-8000-0000000000f0"


def _parsed(text: str) -> tuple[int, int]:
    """Return the number of the account that an id belongs to, and the number of its session."""
    found = _ID.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return int(found[1], 16), int(found[2], 16)


def _record(reading: Taken) -> str:
    zone = f"-{-OFFSET_MIN // 60:02}00"
    return (
        f'{{"WT":"Date({reading.date})","ST":"Date({reading.date})","DT":"Date({reading.date}{zone})",'
        f'"Value":{reading.mg_dl},"Trend":"Flat"}}'
    )
