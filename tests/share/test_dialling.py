"""Connecting to a host with several addresses: which comes first, and what a silent one costs."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.share import ShareClient, UnavailableError, dialling, transport
from dexcom2mqtt.share.bounds import bounds
from tests.support.share_client import ANNA, client_of, failure, readings_of, takes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.demo.share_service import SimulatedShare


def resolve(monkeypatch: pytest.MonkeyPatch, name: str, addresses: list[tuple[str, int]]) -> None:
    """Resolve a name to these addresses."""
    look_up = socket.getaddrinfo

    def resolved(host: str, *arguments: Any, **options: Any) -> list[Any]:
        if host != name:
            return look_up(host, *arguments, **options)
        return [info for address in addresses for info in look_up(*address, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


@pytest.fixture
def full_server() -> Iterator[int]:
    """Yield the port of some addresses from 127.0.0.2 on that accept no connection."""
    with contextlib.ExitStack() as stack:
        port = 0
        for number in range(2, 6):
            server = stack.enter_context(socket.socket())
            server.bind((f"127.0.0.{number}", port))
            server.listen(0)
            port = server.getsockname()[1]
            for _ in range(3):
                waiting = stack.enter_context(socket.socket())
                waiting.settimeout(0)
                waiting.connect_ex(server.getsockname())
        yield port


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait 0.2 s for a silent address instead of 2 s."""
    assert dialling.SILENT_SECONDS == 2
    monkeypatch.setattr(dialling, "SILENT_SECONDS", 0.2)


def port_of(service: SimulatedShare) -> int:
    return int(service.base_url.split(":")[2].split("/")[0])


def many(service: SimulatedShare) -> str:
    return service.base_url.replace("127.0.0.1", "many.test")


def test_tries_every_address_of_a_host(service: SimulatedShare, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the first addresses of a host refuse the connection, the next one is used."""
    port = port_of(service)
    resolve(monkeypatch, "many.test", [("127.0.0.2", port), ("::1", port), ("127.0.0.1", port)])
    client = client_of(service, base_url=many(service))
    assert client.fetch().readings == readings_of(ANNA)


@pytest.mark.usefixtures("short_calls")
def test_a_slow_name_server_costs_nothing_of_a_call(service: SimulatedShare, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a look-up does not count: the call still has its whole time."""
    look_up = socket.getaddrinfo

    def slowly(host: str, *arguments: Any, **options: Any) -> list[Any]:
        time.sleep(0.7)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    with takes(0.7, 2.5):
        assert client_of(service).fetch().readings == readings_of(ANNA)


@pytest.mark.usefixtures("impatient")
def test_silent_addresses_cost_little(
    service: SimulatedShare, full_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent addresses cost 2 s each while another is left, and nothing once one has worked."""
    silent = [(f"127.0.0.{number}", full_server) for number in range(2, 6)]
    resolve(monkeypatch, "many.test", [*silent, ("127.0.0.1", port_of(service))])
    client = client_of(service, base_url=many(service))
    with takes(0.8, 1.8):
        assert client.fetch().readings == readings_of(ANNA)
    service.close()
    service.start()
    with takes(0, 0.19):
        client.fetch()


def test_an_address_that_worked_may_disappear(service: SimulatedShare, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that worked last is only tried first: if it is gone, the others are tried too."""
    port = port_of(service)
    addresses = [("127.0.0.1", port)]
    resolve(monkeypatch, "many.test", addresses)
    client = client_of(service, base_url=many(service))
    client.fetch()
    service.close()
    with socket.create_server(("127.0.0.2", port)) as other:
        addresses.append(("127.0.0.2", port))
        other.settimeout(5)
        monkeypatch.setattr(transport, "CALL_SECONDS", 0.5)
        failure(UnavailableError, client.fetch)  # this one accepts connections and stays silent
        other.accept()[0].close()
    service.start()
    monkeypatch.setattr(transport, "CALL_SECONDS", 20)
    assert client.fetch().readings == readings_of(ANNA)


@pytest.mark.usefixtures("impatient")
def test_the_last_address_has_the_remaining_time(full_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is slow to accept connections, at its last or only address, has the whole time of the call."""
    monkeypatch.setattr(transport, "CALL_SECONDS", 1.2)
    for count in (1, 3):
        resolve(monkeypatch, "many.test", [(f"127.0.0.{number}", full_server) for number in range(2, 2 + count)])
        client = ShareClient(username="a", password="b", base_url=f"http://many.test:{full_server}")
        with takes(1.1, 3):
            failure(UnavailableError, client.fetch)


@pytest.mark.usefixtures("impatient", "short_calls")
def test_a_connection_has_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an address has accepted the connection, the handshake has the time of the call, even if others are left."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        resolve(monkeypatch, "many.test", [("127.0.0.1", port), ("127.0.0.2", port)])
        client = ShareClient(username="a", password="b", base_url=f"https://many.test:{port}")
        with takes(0.4, 4):
            failure(UnavailableError, client.fetch)


def test_a_connection_has_its_options() -> None:
    """The options of a connection, such as sending small packets immediately, are set."""
    option = socket.IPPROTO_TCP, socket.TCP_NODELAY
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        bounds.call(Clock(), 5, 0, None),
        dialling.dial("127.0.0.1", server.getsockname()[1], [(*option, 1)]) as sock,
    ):
        assert sock.getsockopt(*option)


@pytest.mark.usefixtures("short_calls")
def test_connecting_ends_in_time(full_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with several addresses, none of which answers, has no more time than any other."""
    resolve(monkeypatch, "many.test", [(f"127.0.0.{number}", full_server) for number in range(2, 6)])
    client = ShareClient(username="a", password="b", base_url=f"http://many.test:{full_server}")
    with takes(0.4, 4):
        error = failure(UnavailableError, client.fetch)
    assert str(error) == f"no answer from many.test:{full_server}: it took too long"
