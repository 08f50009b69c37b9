"""Brokers with passwords, with TLS, or without MQTT 5."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

from tests.support.processes import listening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import trustme


@contextlib.contextmanager
def gatekeeper(port: int, answer: bytes) -> Iterator[tuple[int, list[int]]]:
    """Listen in front of a broker: answer a CONNECT of MQTT 5 with those bytes and hang up, and pass on all else.

    Yields the port to connect to, and the protocol levels of all CONNECTs.
    """
    levels: list[int] = []

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket) -> None:
        with client:
            connect = client.recv(4096)
            if len(connect) < 9:
                return
            levels.append(connect[8])  # after a length of one byte and the name MQTT
            if connect[8] == 5:
                client.sendall(answer)
                return
            with socket.create_connection(("127.0.0.1", port)) as upstream:
                upstream.sendall(connect)
                back = threading.Thread(target=pass_on, args=(upstream, client), daemon=True)
                back.start()
                pass_on(client, upstream)
                back.join()

    with listening(serve) as own_port:
        yield own_port, levels


def secure(folder: Path, authority: trustme.CA, ca_file: Path, *names: str, client: bool = False) -> list[str]:
    """Return the settings with which mosquitto serves TLS under those names."""
    server = authority.issue_cert(*(names or ("127.0.0.1",)))
    server.private_key_pem.write_to_path(str(folder / "server.key"))
    (folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    lines = [f"cafile {ca_file}", f"certfile {folder}/server.pem", f"keyfile {folder}/server.key"]
    return [*lines, "require_certificate true", "use_identity_as_username true"] if client else lines


def login(folder: Path, user: str, password: str) -> list[str]:
    """Return the settings with which mosquitto accepts only that user."""
    file = folder / "passwords"
    file.touch(0o600)  # later versions of mosquitto will refuse a file that others can read
    subprocess.run(["/usr/bin/mosquitto_passwd", "-b", str(file), user, password], check=True)
    return ["allow_anonymous false", f"password_file {file}"]
