"""What the keys of the configuration accept, their defaults, and what causes a warning."""

from dataclasses import FrozenInstanceError, replace

import pytest

from dexcom2mqtt.config.loading import build
from dexcom2mqtt.config.problems import ConfigError
from dexcom2mqtt.config.settings import Account, Ranges, Settings, Shard, Tls, Web
from dexcom2mqtt.config.values import Secret
from dexcom2mqtt.shards import shard_of
from dexcom2mqtt.topics import Topics
from tests.support.configuration import ANNA, UUID, account, anna, dumped, read

# --- values ------------------------------------------------------------------------------------------------


def test_two_lines_are_enough() -> None:
    """A user name and a password are enough; everything else has its documented default."""
    got = read(ANNA)
    assert dumped(got) == {
        "accounts": {
            "anna": {
                "name": "Anna",
                "username": Secret("anna@example.com"),
                "account_id": None,
                "password": Secret("pw"),
                "region": "us",
                "unit": "mg/dL",
                "ranges": {"very_low": 54, "low": 70, "high": 180, "very_high": 250},
                "share_url": None,
            }
        },
        "mqtt": {
            "host": "localhost",
            "port": 1883,
            "username": None,
            "password": None,
            "protocol": "auto",
            "base_topic": "dexcom2mqtt",
            "client_id": "dexcom2mqtt",
            "keepalive": 60,
            "tls": None,
        },
        "home_assistant": {
            "discovery": True,
            "discovery_prefix": "homeassistant",
            "status_topic": "homeassistant/status",
        },
        "statistics": "90d",
        "web": None,
        "shard": {"index": 0, "count": 1},
        "accounts_dir": None,
        "stale_after": 15,
        "log_level": "info",
    }
    assert got.warnings == ()


@pytest.mark.parametrize(
    "written",
    [
        *("+11234567890", "0123", "yes", "1e3", "1_000", "0x10", "2001-01-01", "12:30:45", "=", ".inf", "No", "NULL"),
        *("Null", "'null'", '"~"', "!!str 5", "a#b", "<<", "pass word", "pä$$wörd", "😀", "\\n"),
    ],
)
def test_a_text_stays_as_it_was_written(written: str) -> None:
    """No text turns into a number, boolean, date or null, quoted or not."""
    plain = written.removeprefix("!!str ").strip("'\"")
    got = anna(f"accounts: {{anna: {{username: {written}, password: {written}}}}}")
    assert got.password.get_secret_value() == plain
    assert got.user.get_secret_value() == plain


def test_the_key_gives_the_name() -> None:
    """An account without a name is named after its key, capitalized, with spaces."""
    got = read("accounts: {anna_marie: {username: a, password: p}, b2: {username: b, password: p, name: Bo B}}")
    assert [each.name for each in got.accounts.values()] == ["Anna marie", "Bo B"]


@pytest.mark.parametrize(
    ("mqtt", "port", "client_id"),
    [
        ("{}", 1883, "dexcom2mqtt"),
        ("{tls: {}}", 8883, "dexcom2mqtt"),
        ("{tls: true}", 8883, "dexcom2mqtt"),
        ("{tls: on}", 8883, "dexcom2mqtt"),
        ("{tls: false}", 1883, "dexcom2mqtt"),
        ("{tls: null}", 1883, "dexcom2mqtt"),
        ("{tls: {verify: no}, port: 1}", 1, "dexcom2mqtt"),
        ("{base_topic: home/cgm/x}", 1883, "home_cgm_x"),
        ("{base_topic: home/cgm, client_id: 007}", 1883, "007"),
    ],
)
def test_port_and_client_id_follow_from_other_keys(mqtt: str, port: int, client_id: str) -> None:
    """By default, the port follows from tls and the client id from base_topic."""
    got = read(f"{ANNA}mqtt: {mqtt}").mqtt
    assert (got.port, got.client_id) == (port, client_id)


def test_null_is_the_default() -> None:
    """A key or section left empty, in any spelling of null, counts as missing."""
    empty = "stale_after:\nlog_level: ~\nhome_assistant:\nmqtt: {host: , port: null, client_id: ~, tls: ~}\n"
    ranges = "accounts: {anna: {username: anna@example.com, password: pw, name: , region: ~, ranges: {low: }}}\n"
    assert read(empty + ranges) == read(ANNA)


@pytest.mark.parametrize("word", ["true", "yes", "on", "True", "ON"])
def test_switches_know_the_words_of_yaml(word: str) -> None:
    """A switch understands true, yes and on, and their opposites."""
    opposite = {"true": "false", "yes": "no", "on": "off"}[word.lower()]
    got = read(f"{ANNA}mqtt: {{tls: {{verify: {opposite}}}}}\nhome_assistant: {{discovery: {word}}}")
    assert got.home_assistant.discovery is True
    assert got.mqtt.tls == Tls(verify=False)


def test_sections_can_be_shared() -> None:
    """Anchors, aliases and << work: the section's own keys beat merged ones, and earlier merges beat later ones."""
    got = read(
        "accounts:\n"
        "  a: &a {username: a, password: p, unit: mmol/L, ranges: &r {low: 80}}\n"
        "  b: {<<: *a, username: b}\n"
        "  c: {username: c, <<: [{region: jp}, *a, {region: ous}], ranges: {<<: *r, high: 200}}\n"
    ).accounts
    assert (got["b"].unit, got["b"].ranges.low, got["b"].user.get_secret_value()) == ("mmol/L", 80, "b")
    assert (got["c"].region, got["c"].ranges) == ("jp", Ranges(low=80, high=200))


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://share.example.com", "https://share.example.com"),
        ("https://share.example.com:8443/base/", "https://share.example.com:8443/base"),
        ("http://localhost:8080/", "http://localhost:8080"),
        ("http://127.3.2.1", "http://127.3.2.1"),
        ("http://[::1]:1", "http://[::1]:1"),
        ("https://[2001:db8::1]", "https://[2001:db8::1]"),
    ],
)
def test_share_url(url: str, kept: str) -> None:
    """Another server is reached by https, or by http on this machine; a trailing slash does not matter."""
    assert anna(account(share_url=url)).share_url == kept


@pytest.mark.parametrize("host", ["localhost", "192.168.1.2", "::1", "fe80::1%eth0", "my_broker", "a-b.local."])
def test_hosts(host: str) -> None:
    """A broker is named by host name or address."""
    assert read(f"{ANNA}mqtt: {{host: '{host}'}}").mqtt.host == host


def test_a_brokers_password_may_be_a_token() -> None:
    """There is room for a broker that needs a token as the password."""
    token = "p" * 16_383
    password = read(f"{ANNA}mqtt: {{username: u, password: {token}}}").mqtt.password
    assert password == Secret(token)


def test_a_person_may_be_known_by_account_id() -> None:
    """`user` is the account id if no user name is given."""
    got = anna(f"accounts: {{anna: {{account_id: {UUID}, password: p}}}}")
    assert (got.username, got.user.get_secret_value()) == (None, UUID)


def test_settings_do_not_change_and_hide_their_secrets() -> None:
    """Settings are frozen, and their repr shows no secrets."""
    got = read(account(username="CANARY1", password="CANARY2") + "mqtt: {username: CANARY3, password: CANARY4}")
    assert "CANARY" not in repr(got)
    for section, key in ((got, "stale_after"), (got.mqtt, "host"), (got.accounts["anna"], "name")):
        with pytest.raises(FrozenInstanceError):
            setattr(section, key, "1")


def test_settings_can_be_made_without_a_file() -> None:
    """Code that needs settings, such as a test, makes them from classes or dictionaries."""
    made = Settings(accounts={"anna": Account(username=Secret("anna@example.com"), password=Secret("pw"))})
    assert made == read(ANNA)
    assert made == build(Settings, {"accounts": {"anna": {"username": "anna@example.com", "password": "pw"}}})


def test_the_error_of_a_section_shows_no_secret() -> None:
    """If code builds an invalid section, the error does not contain the input."""
    with pytest.raises(ConfigError) as caught:
        build(Account, {"username": "a", "password": "CANARY\n", "pasword": "CANARY"})
    assert len(caught.value.problems) == 2
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "web"),
    [
        ("", None),
        ("web: null", None),
        ("web: false", None),
        ("web: true", Web()),
        ("web: {}", Web()),
        ("web: {host: 0.0.0.0, port: 80, token: 0123}", Web(host="0.0.0.0", port=80, token=Secret("0123"))),
    ],
)
def test_the_page_is_off_unless_configured(written: str, web: Web | None) -> None:
    """Nothing is served unless configured; true is enough."""
    assert read(f"{ANNA}{written}\n").web == web
    assert (Web().host, Web().port, Web().token) == ("127.0.0.1", 8017, None)


@pytest.mark.parametrize("web", ["true", "{port: 8017}"])
def test_the_page_can_be_switched_on_from_the_environment(web: str) -> None:
    """One variable switches it on or holds the whole section; one for a single key adds to it."""
    got = read(ANNA, {"DEXCOM2MQTT_WEB": web, "DEXCOM2MQTT_WEB__HOST": "::1"}).web
    assert got is not None
    assert (got.host, got.port) == ("::1", 8017)


# --- several processes -------------------------------------------------------------------------------------


def test_a_single_process_serves_everything_under_its_own_name() -> None:
    """Without shards, accounts, client id and topics are what they always were."""
    got = read(ANNA)
    assert got.own_accounts is got.accounts
    assert got.connection is got.mqtt
    assert got.topics == Topics("dexcom2mqtt") == Topics("dexcom2mqtt", "bridge")
    assert got.topics.bridge_state == "dexcom2mqtt/bridge/state"
    assert got.topics.bridge_info == "dexcom2mqtt/bridge/info"


def test_each_of_several_processes_serves_its_part_under_its_own_name() -> None:
    """The parts make up the whole, each account has one process, and no two processes share a client id or bridge."""
    people = ", ".join(f"a{number}: {{username: u{number}, password: p}}" for number in range(30))
    text = f"accounts: {{{people}}}\nmqtt: {{base_topic: home/cgm}}\n"
    parts = [read(f"{text}shard: {{index: {index}, count: 3}}") for index in range(3)]
    assert sorted(key for part in parts for key in part.own_accounts) == sorted(parts[0].accounts)
    for index, part in enumerate(parts):
        assert [*part.own_accounts] == [key for key in part.accounts if shard_of(key, 3) == index]
        assert part.connection == replace(part.mqtt, client_id=f"home_cgm-{index}")
        assert part.topics.bridge_state == f"home/cgm/bridge-{index}/state"
        assert part.topics.bridge_info == f"home/cgm/bridge-{index}/info"
        assert part.topics.sync("x") == "home/cgm/bridge/sync/x"
        assert part.topics.claims == "home/cgm/bridge/claims"


@pytest.mark.parametrize(("count", "keepalive"), [(1, 300), (2, 60)])
def test_the_broker_soon_ends_the_connection_of_one_of_several_that_is_frozen(count: int, keepalive: int) -> None:
    """Before its ``online`` expires after 180 s and others take its accounts; one process alone may take its time."""
    got = read(f"{ANNA}mqtt: {{keepalive: 300}}\nshard: {{count: {count}}}")
    assert got.connection.keepalive == keepalive


def test_the_shard_can_come_from_the_environment() -> None:
    """A StatefulSet gives each pod its index in a variable."""
    got = read(f"{ANNA}shard: {{count: 4}}", {"DEXCOM2MQTT_SHARD__INDEX": "3"})
    assert got.shard == Shard(index=3, count=4)


# --- warnings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mqtt", "warned"),
    [
        ("{host: localhost}", False),
        ("{host: LOCALHOST}", False),
        ("{host: 127.0.0.2}", False),
        ("{host: '::1'}", False),
        ("{host: 192.168.1.2}", True),
        ("{host: localhost.example.com}", True),
        ("{host: 192.168.1.2, tls: {}}", False),
    ],
)
def test_a_broker_elsewhere_without_tls_earns_a_warning(mqtt: str, *, warned: bool) -> None:
    """Readings that cross the network unencrypted cause a warning that says what to write."""
    got = read(f"{ANNA}mqtt: {mqtt}").warnings
    assert [each.startswith("mqtt: the broker is on another machine") and "tls: true" in each for each in got] == (
        [True] if warned else []
    )


@pytest.mark.parametrize(
    ("web", "warned"),
    [
        ("true", False),
        ("{host: localhost}", False),
        ("{host: 0.0.0.0}", True),
        ("{host: '::'}", True),
        ("{host: 192.168.1.2}", True),
        ("{host: 0.0.0.0, token: secret}", False),
    ],
)
def test_a_page_for_others_without_a_token_earns_a_warning(web: str, *, warned: bool) -> None:
    """If anyone on the network can read the glucose, a warning says what to write."""
    got = read(f"{ANNA}web: {web}").warnings
    assert [
        each.startswith("web: the page can be opened from other machines") and "token:" in each for each in got
    ] == ([True] if warned else [])
