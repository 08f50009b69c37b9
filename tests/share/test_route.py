"""What the environment says about proxies and authorities, read as curl does; no text quotes a possible secret."""

from __future__ import annotations

import base64
import re

import pytest

from dexcom2mqtt.share.errors import VariableError
from dexcom2mqtt.share.route import Proxy, authorities, is_exempt, proxy_for

SHARE = "https://share2.dexcom.com/ShareWebServices/Services"
PROXY = "http://proxy.lan:3128"
ORDER = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]


@pytest.mark.parametrize(
    ("value", "host", "port"),
    [
        (PROXY, "proxy.lan", 3128),
        ("proxy.lan:3128", "proxy.lan", 3128),
        (" HTTP://Proxy.LAN:3128/ ", "proxy.lan", 3128),
        ("http://proxy", "proxy", 80),
        ("192.168.1.2:8080", "192.168.1.2", 8080),
        ("http://[fd00::1]:3128", "fd00::1", 3128),
        ("http://squid_1.bücher.test:3128", "squid_1.bücher.test", 3128),
    ],
)
def test_reads_a_proxy(value: str, host: str, port: int) -> None:
    """An address with or without its kind, as a name or a number; without a port it has the port of HTTP."""
    proxy = proxy_for(SHARE, {"HTTPS_PROXY": value})
    assert proxy == Proxy(host, port, "HTTPS_PROXY")


@pytest.mark.parametrize(
    ("before", "shown"),
    [
        ("user:word", "user:word"),
        ("user", "user:"),
        ("user:", "user:"),
        ("us%40er:p%3A%2F%25%20w", "us@er:p:/% w"),
        ("z%C3%B6e:w%C3%B6rd", "zöe:wörd"),
        ("user:w@rd", "user:w@rd"),
    ],
)
def test_reads_user_and_password(before: str, shown: str) -> None:
    """They are written before the host, with special characters in hexadecimal, and are never printed."""
    proxy = proxy_for(SHARE, {"HTTPS_PROXY": f"http://{before}@proxy.lan:3128"})
    assert proxy is not None
    assert proxy.authorization == "Basic " + base64.b64encode(shown.encode()).decode()
    assert str(proxy) == "proxy.lan:3128"
    assert proxy.authorization not in repr(proxy)


def test_writes_an_address_of_ipv6_in_brackets() -> None:
    """If a port follows, the address is in brackets."""
    assert str(Proxy("fd00::1", 3128, "HTTPS_PROXY")) == "[fd00::1]:3128"


@pytest.mark.parametrize("count", range(1, 5))
def test_the_first_variable_that_is_set_counts(count: int) -> None:
    """Lowercase comes before uppercase, HTTPS before ALL, and an empty value means no proxy."""
    environ = {variable: f"http://{variable.lower()[0]}{number}" for number, variable in enumerate(ORDER)}
    first = ORDER[-count]
    rest = {variable: environ[variable] for variable in ORDER[-count:]}
    proxy = proxy_for(SHARE, rest)
    assert proxy is not None
    assert (proxy.variable, proxy.host) == (first, f"{first.lower()[0]}{4 - count}")
    assert proxy_for(SHARE, rest | {first: ""}) is None
    assert proxy_for(SHARE, {"HTTP_PROXY": PROXY, "http_proxy": PROXY}) is None


def test_http_has_no_proxy() -> None:
    """A base URL without TLS is on this machine; not even an invalid variable matters there."""
    assert proxy_for("http://127.0.0.1:8000", dict.fromkeys(ORDER, "no proxy")) is None


@pytest.mark.parametrize(
    "value",
    [
        *(
            "socks5://proxy.lan:1080",
            "socks5h://user:pa55@proxy.lan",
            "socks4://proxy.lan",
            "https://pa55@proxy.lan:443",
        ),
        *("ftp://pa55@proxy.lan", "http://", "http://:3128", "http:/proxy.lan:3128", "://proxy.lan"),
        *("http://proxy.lan:port", "http://proxy.lan:0", "http://proxy.lan:65536", "http://proxy.lan:-1"),
        *("http://user:pa55/word@proxy.lan:3128", "http://user:1?pa55@proxy.lan", "http://user:1#pa55@proxy.lan:3128"),
        *("http://proxy.lan:3128/path", "http://proxy lan:3128", "http://pro\nxy.lan", "http://pa55@proxy\u200b.lan"),
        *('"http://proxy.lan:3128"', "'proxy.lan:3128'", "http://[fd00::1", "http://[pa55]:3128", "http://a,b:3128"),
        *("fd00::1", "http://user:pa55@"),
    ],
)
def test_refuses_an_invalid_proxy(value: str) -> None:
    """The error names the variable and what is allowed, and quotes nothing: any part of it may be a password."""
    with pytest.raises(VariableError) as error:
        proxy_for(SHARE, {"ALL_PROXY": value})
    text = str(error.value)
    assert re.match("ALL_PROXY: (unsupported kind of proxy|expected a proxy's address)", text)
    assert "allowed: http://host:port" in text
    assert "pa55" not in text
    assert "lan" not in text
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None


@pytest.mark.parametrize(
    ("exempt", "host", "port", "direct"),
    [
        ("", "share.test", 443, False),
        (" , ", "share.test", 443, False),
        ("*", "share.test", 443, True),
        ("share.test", "share.test", 443, True),
        ("SHARE.test.", "Share.TEST.", 443, True),
        ("test", "share.test", 443, True),
        (".test", "share.test", 443, True),
        ("*.test", "share.test", 443, True),
        ("est", "share.test", 443, False),
        (".", "share.test", 443, False),
        ("a.test share.test", "share.test", 443, True),
        ("a.test,share.test", "share.test", 443, True),
        ("share.test:443", "share.test", 443, True),
        ("share.test:8443", "share.test", 443, False),
        ("a.share.test", "share.test", 443, False),
        ("192.168.1.2", "192.168.1.2", 443, True),
        ("192.168.0.0/16", "192.168.1.2", 443, True),
        ("192.168.0.0/16", "192.169.1.2", 443, False),
        ("192.168.0.0/16", "share.test", 443, False),
        ("192.168.1.2:8443", "192.168.1.2", 8443, True),
        ("fd00::/8", "fd00::1", 443, True),
        ("fd00::/8", "192.168.1.2", 443, False),
        ("[fd00::1]", "fd00::1", 443, True),
        ("[fd00::1]:8443", "fd00::1", 443, False),
        ("[fd00::1]:8443", "fd00::1", 8443, True),
        ("68.1.2", "192.168.1.2", 443, False),
    ],
)
def test_reads_no_proxy(exempt: str, host: str, port: int, direct: bool) -> None:
    """Names for themselves and all names below them, addresses and ranges, each with or without a port."""
    assert is_exempt(host, port, exempt) is direct


def test_lowercase_comes_first_in_no_proxy() -> None:
    """Of no_proxy and NO_PROXY the first counts; without a port, a base URL has the port of its scheme."""
    environ = {"HTTPS_PROXY": PROXY, "no_proxy": "dexcom.com:443", "NO_PROXY": "other.test"}
    assert proxy_for(SHARE, environ) is None
    assert proxy_for("https://other.test:8443", environ) is not None
    assert proxy_for("https://other.test:8443", {"HTTPS_PROXY": PROXY, "NO_PROXY": "other.test:8443"}) is None


def test_reads_authorities() -> None:
    """Each variable counts, a list of folders is split, and an empty one names nothing."""
    assert authorities({}) == []
    assert authorities({"SSL_CERT_FILE": "", "SSL_CERT_DIR": ":", "CURL_CA_BUNDLE": "/x"}) == []
    assert authorities({"REQUESTS_CA_BUNDLE": "/a:b", "SSL_CERT_DIR": "/c:/d", "SSL_CERT_FILE": "/e"}) == [
        ("SSL_CERT_FILE", "/e"),
        ("SSL_CERT_DIR", "/c"),
        ("SSL_CERT_DIR", "/d"),
        ("REQUESTS_CA_BUNDLE", "/a:b"),
    ]
