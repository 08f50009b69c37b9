"""Who may read."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexcom2mqtt.web.access import Access, bearer
from tests.support.builders import any_text, property_of

TOKEN = "Geheim&42"
SHA1 = hashlib.sha1(TOKEN.encode(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("given_", [TOKEN, f"token={TOKEN}", SHA1, SHA1.upper()])
def test_the_token_gives_access(given_: str) -> None:
    """The token is accepted in plain, as Nightscout clients name it, and as the SHA-1 that most of them send."""
    assert Access(TOKEN).knows_token([given_])
    assert Access(TOKEN).knows_token(["wrong", given_])


@pytest.mark.parametrize(
    "given_",
    [[], [""], ["geheim&42"], [TOKEN[:-1]], [f"{TOKEN} "], [f"token={SHA1}"], [SHA1[:-1]], ["ü"], ["\udcff"]],
)
def test_nothing_else_gives_access(given_: list[str]) -> None:
    """A part of the token, another case, or text that cannot be encoded is not accepted."""
    assert not Access(TOKEN).knows_token(given_)


def test_without_a_token_everybody_may_read() -> None:
    """If no token is set, none is required."""
    assert Access().knows_token([])


@property_of
@given(any_text, any_text)
def test_only_the_token_gives_access(token: str, given_: str) -> None:
    """For any two texts, only an equal one is accepted; the token itself is ASCII."""
    token = token.encode("ascii", "ignore").decode() or "x"
    sha1 = hashlib.sha1(token.encode(), usedforsecurity=False).hexdigest()
    assert Access(token).knows_token([given_]) is (given_ in {token, f"token={token}"} or given_.lower() == sha1)


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", ""), ("", ""), ("Bearer", ""), ("abc", "")],
)
def test_bearer(header: str, token: str) -> None:
    """The token follows the word Bearer."""
    assert bearer(header) == token


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8017", "192.168.1.2:80", "[::1]", "[fd00::1]:8017"),
        *("localhost", "LOCALHOST:8017", "raspberrypi", "RaspberryPi:8017", "pi.local", "my.pi.local:1", "localhost."),
        None,
    ],
)
def test_names_of_this_machine(host: str | None) -> None:
    """Addresses, localhost, its own name, and names that machines announce in their own network are served."""
    assert Access(names=frozenset({"raspberrypi"})).knows_host(host)


@pytest.mark.parametrize(
    "host",
    [
        *("example.com", "raspberrypi.example.com", "local", ".local", "pi.local.example.com", "pilocal"),
        *("", ":80", "[::1", "::1", "[1.2.3]", "127.1", "0x7f000001", "127.0.0.1, example.com", "a@localhost"),
        *("localhost:999999", "\uff4cocalhost", "[::1]x", "127.0.0.1.nip.io", "pi.local/x"),
    ],
)
def test_other_names(host: str) -> None:
    """A name that a name server could point here is not served, nor is an invalid name."""
    access = Access(names=frozenset({"raspberrypi"}))
    assert not access.knows_host(host)
    assert Access(names=None).knows_host(host)


@pytest.mark.parametrize("address", ["172.30.32.2", "::ffff:172.30.32.2", "::FFFF:172.30.32.2"])
def test_allowed_peers(address: str) -> None:
    """An allowed IPv4 address may connect, also through an IPv6 socket."""
    assert Access(peers=frozenset({"172.30.32.2"})).knows_peer(address)


@pytest.mark.parametrize(
    "address", ["172.30.32.20", "172.30.32.1", "127.0.0.1", "", "::1", "::ffff:0:172.30.32.2", "fd00::172.30.32.2", "x"]
)
def test_other_peers(address: str) -> None:
    """If only some addresses may connect, all others are refused."""
    assert not Access(peers=frozenset({"172.30.32.2"})).knows_peer(address)
    assert Access().knows_peer(address)


@property_of
@given(st.text())
def test_any_host_is_known_or_not(host: str) -> None:
    """Any Host header is either known or not, without an error."""
    assert Access().knows_host(host) in {True, False}
