"""Faults of the simulated Share service: distortions of its readings, and faults of its answers."""

from __future__ import annotations

import itertools
import json
import math
import socket
import struct
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from dexcom2mqtt.demo.share_service import (
    ZERO_UUID,
    Delivery,
    Distortion,
    Fault,
    Record,
    Request,
    Respond,
    Response,
    error_answer,
    http_date,
    json_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


# Readings


def missing(_records: list[Record]) -> list[Record]:
    """Remove all readings: the sensor warms up, sharing is off, nobody follows."""
    return []


def during(since: float, until: float, distortion: Distortion) -> Distortion:
    """Return `distortion` of the readings taken from `since` until before `until`, Unix seconds."""

    def inside(record: Record) -> bool:
        return since * 1000 <= record.taken < until * 1000

    def distort(records: list[Record]) -> list[Record]:
        return list(itertools.filterfalse(inside, records)) + distortion(list(filter(inside, records)))

    return distort


def together(*distortions: Distortion) -> Distortion:
    """Return the distortions one after the other."""

    def distort(records: list[Record]) -> list[Record]:
        for distortion in distortions:
            records = distortion(records)
        return records

    return distort


def late(until: float) -> Distortion:
    """Hold the readings back until `until`, Unix seconds: the phone was off and uploads what it missed."""
    return lambda records: [replace(record, arrives=max(record.arrives, until)) for record in records]


def skewed(by: float) -> Distortion:
    """Stamp the readings `by` seconds ahead of their time, or behind it: the phone's clock is wrong."""
    return lambda records: [replace(record, taken=record.taken + round(by * 1000)) for record in records]


def doubled(after: float = 9.5) -> Distortion:
    """Repeat each reading `after` seconds later: a G7 on a watch and on a phone."""
    return calibrated(by=0, after=after)


def calibrated(by: int, after: float = 60.0) -> Distortion:
    """Put a second reading into each slot, `after` seconds after the first and `by` mg/dL above it."""

    def second(record: Record) -> Record:
        taken = record.taken + round(after * 1000)
        return replace(record, taken=taken, value=record.value + by, arrives=record.arrives + after)

    return lambda records: records + [second(record) for record in records]


def valued(value: int) -> Distortion:
    """Give each reading this value: below 39 an error code, 39 LOW, 401 HIGH."""
    return lambda records: [replace(record, value=value) for record in records]


def trending(word: str) -> Distortion:
    """Give each reading this trend word, known or unknown."""
    return lambda records: [replace(record, trend=word) for record in records]


# Answers


def only(
    fault: Fault,
    *,
    call: str | None = None,
    account: str | None = None,
    since: float = -math.inf,
    until: float = math.inf,
    times: int | None = None,
) -> Fault:
    """Return `fault` for the requests that meet all the given conditions.

    `account` is a user name; `since` and `until` are Unix seconds by the service's clock; `times` limits it to the
    first requests that meet the other conditions.
    """
    met = itertools.count()  # next() is atomic, and requests come in many threads

    def matches(request: Request) -> bool:
        username = request.account.username if request.account else None
        return (
            call in (None, request.call)
            and account in (None, username)
            and since <= request.time < until
            and (times is None or next(met) < times)
        )

    return lambda request, respond: fault(request, respond) if matches(request) else respond(request)


def chain(*faults: Fault) -> Fault:
    """Return the faults as one; each gets as the service's answer what the faults after it make of it."""

    def before(fault: Fault, respond: Respond) -> Respond:
        return lambda request: fault(request, respond)

    def answer(request: Request, respond: Respond) -> Response:
        for fault in reversed(faults):
            respond = before(fault, respond)
        return respond(request)

    return answer


def status(code: int, headers: Mapping[str, str] | None = None, content: bytes = b"") -> Fault:
    """Answer with this status without reading the request; `headers` such as Retry-After."""
    response = Response(code, content, dict(headers or {}), outcome=str(code))
    return lambda _request, _respond: response


def html(code: int) -> Fault:
    """Answer as Cloudflare does: a page for people."""
    page = f"<!DOCTYPE html>\n<html><head><title>{code}</title></head><body>cloudflare</body></html>\n"
    return status(code, {"Content-Type": "text/html; charset=UTF-8"}, page.encode())


def body(content: bytes) -> Fault:
    """Answer 200 with this body: empty, `null`, `[]`, something that is not JSON."""
    response = Response(body=content, outcome="body")
    return lambda _request, _respond: response


def zero_uuid() -> Fault:
    """Answer 200 with the all-zero UUID: Share rejects the credentials."""
    return body(json_bytes(ZERO_UUID))


def error(code: str, message: str = "") -> Fault:
    """Answer with one of Share's errors without reading the request."""
    return lambda request, _respond: error_answer(request, code, message)


def password_changed() -> Fault:
    """Reject every password: it was changed meanwhile, and each try counts towards a lock-out."""

    def change(request: Request, respond: Respond) -> Response:
        fields = {name: f"not {value}" if name == "password" else value for name, value in request.fields.items()}
        return respond(replace(request, fields=fields))

    return change


def altered(change: Callable[[Response], Response]) -> Fault:
    """Answer with what `change` makes of the service's answer."""
    return lambda request, respond: change(respond(request))


def edited(edit: Callable[[Any], object]) -> Fault:
    """Answer with what `edit` makes of the JSON: one reading spoiled, another order; errors stay unchanged."""

    def change(answer: Response) -> Response:
        if answer.status != HTTPStatus.OK or not answer.body:
            return answer
        return replace(answer, body=json_bytes(edit(json.loads(answer.body))), outcome="edited")

    return altered(change)


def truncated() -> Fault:
    """Answer with half the JSON, as if it were complete."""
    return altered(lambda answer: replace(answer, body=answer.body[: len(answer.body) // 2], outcome="truncated"))


def padded(size: int = 2**20 + 1, *, compress: bool = False) -> Fault:
    """Answer with spaces after the JSON, so that the body has at least `size` bytes once decompressed."""
    return altered(lambda answer: replace(answer, body=answer.body.ljust(size), compress=compress, outcome="padded"))


def header(name: str, value: str | None) -> Fault:
    """Answer as the service does, with this header set, or removed if `value` is None."""
    return altered(lambda answer: replace(answer, headers={**answer.headers, name: value}))


def date_offset(seconds: float) -> Fault:
    """Answer as the service does, with a `Date` that is wrong by this much."""
    return lambda request, respond: header("Date", http_date(request.time + seconds))(request, respond)


def hang() -> Fault:
    """Serve the request, and do not answer until the client disconnects."""

    def deliver(connection: socket.socket, _head: bytes, _content: bytes) -> bool:
        connection.recv(1, socket.MSG_PEEK)  # returns when the client or the service closes the connection
        return False

    return _delivered(deliver, "hang")


def drip(interval: float = 1.0) -> Fault:
    """Answer with the body's bytes one by one, `interval` real seconds apart."""

    def deliver(connection: socket.socket, head: bytes, content: bytes) -> bool:
        connection.sendall(head)
        for byte in content:
            connection.sendall(bytes([byte]))
            if not _waited(connection, interval):
                return False
        return True

    return _delivered(deliver, "drip")


def drop() -> Fault:
    """Serve the request, and close the connection before the answer."""
    return _delivered(lambda _connection, _head, _content: False, "drop")


def cut() -> Fault:
    """Close the connection in the middle of the answer's body."""

    def deliver(connection: socket.socket, head: bytes, content: bytes) -> bool:
        connection.sendall(head + content[: len(content) // 2])
        return False

    return _delivered(deliver, "cut")


def reset() -> Fault:
    """Serve the request, and reset the connection before the answer."""

    def deliver(connection: socket.socket, _head: bytes, _content: bytes) -> bool:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        return False

    return _delivered(deliver, "reset")


def _delivered(delivery: Delivery, outcome: str) -> Fault:
    return altered(lambda answer: replace(answer, delivery=delivery, outcome=outcome))


def _waited(connection: socket.socket, seconds: float) -> bool:
    """Wait `seconds`; return False at once if the client or the service closes the connection meanwhile."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except TimeoutError:
        return True
    finally:
        connection.settimeout(None)
