"""The daemon while certificates are renewed on disk: a real process, and a real mosquitto that restarts or reloads."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Final

import pytest
import trustme

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from tests.support.certificates import write
from tests.support.processes import Mosquitto, Subscriber, daemon, eventually, free_port, write_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from tests.support.processes import Process

ANNA: Final = SimulatedAccount("anna@example.com", "hunter2", seed=1)
SPEED: Final = 60.0
STATE: Final = "dexcom2mqtt/bridge/state"


class Place:
    """A broker that requires certificates at one port and none at another, and a daemon at the first."""

    def __init__(self, folder: Path, start_mosquitto: Callable[..., Mosquitto], stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self._port = free_port()
        self.renew_broker(trustme.CA())
        self.trust(self.authority)
        self.renew_client(self.authority)
        self.broker = start_mosquitto(
            "allow_anonymous true",
            f"listener {self._port} 127.0.0.1",
            *(f"{key} {folder}/{file}" for key, file in (("cafile", "broker-ca.pem"), ("certfile", "broker.pem"))),
            f"keyfile {folder}/broker.key",
            "require_certificate true",
        )
        self._service = stack.enter_context(SimulatedShare([ANNA], accelerated(SPEED)))

    def renew_broker(self, authority: trustme.CA) -> None:
        """Give the broker a certificate of this authority, which it trusts from now on; the daemon does not yet."""
        self.authority = authority
        write(authority.issue_cert("127.0.0.1"), self.folder / "broker.pem", self.folder / "broker.key")
        authority.cert_pem.write_to_path(str(self.folder / "broker-ca.pem"))

    def trust(self, authority: trustme.CA) -> None:
        """Make the daemon trust this authority."""
        authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))

    def renew_client(self, authority: trustme.CA) -> None:
        """Give the daemon a certificate of this authority."""
        write(authority.issue_cert("anna@example.org"), self.folder / "my.pem", self.folder / "my.key")

    def start(self) -> Process:
        names = {"ca_file": "ca.pem", "cert_file": "my.pem", "key_file": "my.key"}
        config: dict[str, Any] = {
            "accounts": {"anna": {"username": ANNA.username, "password": ANNA.password}},
            "mqtt": {"host": "127.0.0.1", "port": self._port},
        }
        config["accounts"]["anna"]["share_url"] = self._service.base_url
        config["mqtt"]["tls"] = {key: str(self.folder / file) for key, file in names.items()}
        file = write_config(self.folder / "config.yaml", config)
        return self._stack.enter_context(daemon(file, self.folder / "daemon.log", speed=SPEED))


@pytest.fixture
def place(tmp_path: Path, start_mosquitto: Callable[..., Mosquitto], stack: ExitStack) -> Place:
    return Place(tmp_path, start_mosquitto, stack)


def test_everything_is_renewed_while_it_runs(place: Place) -> None:
    """The authority and both certificates are replaced, invalid at first: the daemon keeps running and reconnects."""
    process = place.start()
    with Subscriber(place.broker.port) as subscriber:
        subscriber.wait_for(STATE, "online")
    place.broker.stop()
    place.renew_broker(trustme.CA())
    place.broker.start()
    eventually(lambda: "mqtt.tls.ca_file is not the authority that signed it" in process.text())
    (place.folder / "ca.pem").write_bytes(place.authority.cert_pem.bytes()[:300])
    eventually(lambda: "ca.pem contains no PEM certificate" in process.text())
    place.trust(place.authority)
    eventually(lambda: "it does not accept this client's certificate (unknown ca)" in process.text())
    assert process.running
    place.renew_client(place.authority)
    with Subscriber(place.broker.port) as subscriber:
        subscriber.wait_for(STATE, "online")
        subscriber.wait_for("dexcom2mqtt/anna/availability", "online")
    assert "is mqtt.port the right one" not in process.text()
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_a_broker_that_is_reloaded(place: Place) -> None:
    """After a reload by SIGHUP, the broker's new certificate and authority work for the next connection.

    On SIGHUP, Mosquitto 2.0 reads certfile and keyfile again; cafile, which verifies ours, only at its start.
    """
    process = place.start()
    with Subscriber(place.broker.port) as subscriber:
        subscriber.wait_for(STATE, "online")
        place.renew_broker(trustme.CA())
        place.trust(place.authority)
        place.broker.reload()
        subscriber.forget()
        Subscriber(place.broker.port, set_up=lambda client: client.reinitialise("dexcom2mqtt")).close()
        subscriber.wait_for(STATE, "offline")
        subscriber.wait_for(STATE, "online")
    assert "certificate" not in process.text()


@pytest.mark.parametrize("spoilt", ["ca.pem", "my.pem", "my.key"])
def test_a_start_with_invalid_files_ends_with_78(place: Place, spoilt: str) -> None:
    """At the start there is nothing to fall back on: an invalid file is a problem in the configuration."""
    (place.folder / spoilt).write_text("nothing", encoding="utf-8")
    process = place.start()
    assert process.wait() == 78
    assert str(place.folder / spoilt) in process.text()
    assert "Traceback" not in process.text()


def test_a_start_with_the_key_of_another_certificate_ends_with_78(place: Place) -> None:
    """A certificate and a key that do not belong together are named, and end the start."""
    (place.folder / "my.key").write_bytes((place.folder / "broker.key").read_bytes())
    process = place.start()
    assert process.wait() == 78
    assert "my.key do not belong together" in process.text()
