"""What check says about a proxy set in the environment, valid or not; run says the same in its log."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Final

import pytest
import trustme

from tests.support import proxy as at_proxy
from tests.support.checking import ANNA, Bench, failed, steps
from tests.support.processes import Process, eventually, free_port, write_config
from tests.support.proxy import ConnectProxy
from tests.support.share_client import LittleServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAR: Final = "https://far.invalid/ShareWebServices/Services"
"""A server whose name only the proxy knows."""


@pytest.fixture
def proxy(tmp_path: Path, bench: Bench) -> Iterator[ConnectProxy]:
    """Return a proxy to a Share without readings, set in the environment with user and password."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with (
        LittleServer(authority.issue_cert("far.invalid")) as server,
        ConnectProxy(server.server_address[1]) as proxy,
    ):
        bench.accounts = {"anna": bench.account(ANNA, share_url=FAR)}
        bench.environ |= {
            "HTTPS_PROXY": f"http://the-user:the-secret@{proxy.name}",
            "REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem"),
        }
        yield proxy


def run(config: Path, output: Path, bench: Bench) -> Process:
    return Process([sys.executable, "-m", "dexcom2mqtt", "run", "--config", config], output, bench.environ)


def test_names_the_proxy(bench: Bench, proxy: ConnectProxy) -> None:
    """The proxy is named once by host and port, and everything goes through it."""
    bench.accounts["ben"] = bench.account(ANNA, share_url=FAR, username="ben")
    done = bench.check(free_port())
    said = steps(done.stdout)
    assert said[1] == (
        "ok",
        f"configuration: Share is reached through the proxy {proxy.name}, which is set in the environment.",
    )
    assert ("ok", "anna: Signed in to far.invalid, region us.") in said
    assert done.stdout.count("the proxy") == 1
    assert set(proxy.asked) == {"CONNECT far.invalid:443 HTTP/1.1"}


def test_names_no_proxy_if_there_is_none(bench: Bench) -> None:
    """If Share is reached directly, proxies are not mentioned."""
    assert "proxy" not in bench.check(free_port()).stdout


def test_says_that_the_proxy_refuses(bench: Bench, proxy: ConnectProxy) -> None:
    """If the proxy needs other credentials, the message says so, with the remedy."""
    proxy.trouble = at_proxy.refusal(407)
    done = bench.check(free_port())
    assert done.returncode == 1
    assert failed(done.stdout)[0] == (
        f"anna: The proxy {proxy.name} requires a user name and a password, or different ones (407): write them into "
        f"HTTPS_PROXY, as http://user:password@{proxy.name}."
    )


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HTTPS_PROXY", "http://the-user:the-secret@proxy", "HTTPS_PROXY: expected a proxy's address (value hidden)"),
        ("https_proxy", "socks5://the-user:the-secret@proxy", "https_proxy: unsupported kind of proxy, socks5://"),
        ("SSL_CERT_FILE", "/missing.pem", "SSL_CERT_FILE: /missing.pem cannot be read (No such file or directory)"),
    ],
)
def test_an_invalid_variable_is_a_problem(
    bench: Bench, proxy: ConnectProxy, tmp_path: Path, variable: str, value: str, words: str
) -> None:
    """It ends check and run with 78 and one line, before any sign-in."""
    bench.environ[variable] = value + ":x" * (variable == "HTTPS_PROXY")
    done = bench.check(free_port())
    assert done.returncode == 78
    first, said = done.stderr.splitlines()
    assert first == "dexcom2mqtt: the configuration cannot be used:"
    assert said.strip().startswith(words)
    assert done.stdout == ""
    with run(tmp_path / "config.yaml", tmp_path / "log", bench) as process:
        assert process.wait() == 78
        assert words in process.text()
        assert "Traceback" not in process.text()
        assert "the-secret" not in process.text()
    assert proxy.asked == []


def test_the_daemon_names_the_proxy_once(bench: Bench, proxy: ConnectProxy, tmp_path: Path) -> None:
    """One line at the start names the proxy by host and port; its user and password are in none, at debug too."""
    config = write_config(
        tmp_path / "daemon.yaml",
        {"accounts": bench.accounts, "mqtt": {"host": "127.0.0.1", "port": free_port()}, "log_level": "debug"},
    )
    with run(config, tmp_path / "log", bench) as process:
        eventually(lambda: proxy.asked, why=process.text())
        proxy.trouble = at_proxy.refusal(407)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        log = process.text()
    assert log.count(f"Share is reached through the proxy {proxy.name}\n") == 1
    assert "the-secret" not in log
    assert "the-user" not in log
