"""The configuration: every key, every source, every mistake; and no secret in any word about them."""

import json
import os
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from dexcom2mqtt import config
from dexcom2mqtt.config import (
    Account,
    ConfigError,
    HomeAssistant,
    Mqtt,
    Ranges,
    Settings,
    Tls,
    load,
    schema,
)

EXAMPLE = Path(__file__).parent.parent.parent / "config.example.yaml"
ANNA = "accounts: {anna: {username: anna@example.com, password: pw}}\n"
UUID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
ACCOUNT_KEYS = "name, account_id, username, password, region, unit, ranges, share_url"
MQTT_KEYS = "host, tls, port, username, password, protocol, base_topic, client_id, keepalive"
SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): Settings,
    ("accounts", "anna"): Account,
    ("accounts", "anna", "ranges"): Ranges,
    ("mqtt",): Mqtt,
    ("mqtt", "tls"): Tls,
    ("home_assistant",): HomeAssistant,
}
MODELS = SECTIONS.values()
NOT_SHOWN = "found a value not shown here, as it may be a secret"
TEXT = "a text of 1 to 256 characters, in quotes, without tabs and line breaks"

properties = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@pytest.fixture(autouse=True)
def nowhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's own configuration out of the tests."""
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(empty)
    monkeypatch.setattr(config, "DEFAULT_FILES", (Path("config.yaml"), empty / "etc.yaml"))
    monkeypatch.setattr(config, "DOCKER_SECRETS", empty / "secrets")


def read(text: str | bytes, environ: Mapping[str, str] | None = None, *secrets: Path) -> Settings:
    file = Path("test.yaml")
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    file.chmod(0o600)
    return load(file, environ=environ or {}, secrets=secrets)


def mistakes(text: str | bytes, environ: Mapping[str, str] | None = None, *secrets: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(text, environ, *secrets)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    return caught.value.mistakes


def account(**keys: object) -> str:
    return str(yaml.safe_dump({"accounts": {"anna": {"username": "a", "password": "p", **keys}}}))


def anna(text: str) -> Account:
    return read(text).accounts["anna"]


# --- values ------------------------------------------------------------------------------------------------


def test_two_lines_are_enough() -> None:
    """A user name and a password make a configuration; all else has the documented default."""
    got = read(ANNA)
    assert got.model_dump() == {
        "accounts": {
            "anna": {
                "name": "Anna",
                "username": SecretStr("anna@example.com"),
                "account_id": None,
                "password": SecretStr("pw"),
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
        "stale_after": 15,
        "log_level": "info",
    }
    assert got.warnings == ()


@pytest.mark.parametrize(
    "written",
    [
        *("+11234567890", "0123", "yes", "1e3", "1_000", "0x10", "2001-01-01", "12:30:45", "=", ".inf", "No", "NULL"),
        *("Null", "'null'", '"~"', "!!str 5", "a#b", "<<", "pass word", "pä$$wörd", "“quoted”", "😀", "\\n"),
    ],
)
def test_a_text_stays_as_it_was_written(written: str) -> None:
    """No text becomes a number, a truth, a date or nothing, quoted or not."""
    plain = written.removeprefix("!!str ").strip("'\"")
    got = anna(f"accounts: {{anna: {{username: {written}, password: {written}}}}}")
    assert got.password.get_secret_value() == plain
    assert got.user.get_secret_value() == plain


def test_the_key_gives_the_name() -> None:
    """An account without a name is called like its key, capitalised, with spaces."""
    got = read("accounts: {anna_marie: {username: a, password: p}, b2: {username: b, password: p, name: Bo B}}")
    assert [each.name for each in got.accounts.values()] == ["Anna marie", "Bo B"]


@pytest.mark.parametrize(
    ("mqtt", "port", "client_id"),
    [
        ("{}", 1883, "dexcom2mqtt"),
        ("{tls: {}}", 8883, "dexcom2mqtt"),
        ("{tls: null}", 1883, "dexcom2mqtt"),
        ("{tls: {verify: no}, port: 1}", 1, "dexcom2mqtt"),
        ("{base_topic: home/cgm/x}", 1883, "home_cgm_x"),
        ("{base_topic: home/cgm, client_id: 007}", 1883, "007"),
    ],
)
def test_port_and_client_id_follow_from_other_keys(mqtt: str, port: int, client_id: str) -> None:
    """Port and client id, where they are not given, follow from tls and base_topic."""
    got = read(f"{ANNA}mqtt: {mqtt}").mqtt
    assert (got.port, got.client_id) == (port, client_id)


def test_null_is_the_default() -> None:
    """A key or section left empty, in any spelling of nothing, is as if it were not there."""
    empty = "stale_after:\nlog_level: ~\nhome_assistant:\nmqtt: {host: , port: null, client_id: ~, tls: }\n"
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
    """Anchors, aliases and << work: the section's own keys beat merged ones, an earlier merged one a later."""
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
    """Another server is reached by https, or by http on this machine; a closing slash does not matter."""
    assert anna(account(share_url=url)).share_url == kept


@pytest.mark.parametrize("host", ["localhost", "192.168.1.2", "::1", "fe80::1%eth0", "my_broker", "a-b.local."])
def test_hosts(host: str) -> None:
    """A broker is named by host name or address."""
    assert read(f"{ANNA}mqtt: {{host: '{host}'}}").mqtt.host == host


def test_a_brokers_password_may_be_a_token() -> None:
    """Where a broker wants a token for a password, there is room for it."""
    token = "p" * 16_383
    password = read(f"{ANNA}mqtt: {{username: u, password: {token}}}").mqtt.password
    assert password == SecretStr(token)


def test_a_person_may_be_known_by_account_id() -> None:
    """`user` is the account id where no user name is given."""
    got = anna(f"accounts: {{anna: {{account_id: {UUID}, password: p}}}}")
    assert (got.username, got.user.get_secret_value()) == (None, UUID)


def test_settings_do_not_change_and_hide_their_secrets() -> None:
    """Settings are frozen, and no secret is in their repr."""
    got = read(account(username="CANARY1", password="CANARY2") + "mqtt: {username: CANARY3, password: CANARY4}")
    assert "CANARY" not in repr(got)
    for section, key in ((got, "stale_after"), (got.mqtt, "host"), (got.accounts["anna"], "name")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, "1")


def test_settings_can_be_made_without_a_file() -> None:
    """Code that needs settings, such as a test, builds them from models or dictionaries."""
    made = Settings(accounts={"anna": Account(username=SecretStr("anna@example.com"), password=SecretStr("pw"))})
    assert made == read(ANNA)
    assert made == Settings(accounts={"anna": {"username": "anna@example.com", "password": "pw"}})


def test_models_say_no_secret_either() -> None:
    """A model built wrongly by code raises an error that holds no input."""
    with pytest.raises(ValidationError) as caught:
        Account(username=SecretStr("a"), password=SecretStr("CANARY\n"), pasword="CANARY")  # type: ignore[call-arg]
    assert caught.value.error_count() == 2
    assert "CANARY" not in str(caught.value)


# --- sources -----------------------------------------------------------------------------------------------


def secret(folder: Path, name: str, content: bytes = b"from the file\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"dexcom2mqtt_{name}").write_bytes(content)
    return folder


def test_environment_beats_secret_files_beat_yaml(tmp_path: Path) -> None:
    """Each key is taken from the strongest source that has it; the later folder beats the earlier."""
    text = "accounts: {anna: {username: yaml, password: yaml, name: yaml, unit: mmol/L}}"
    one, two = tmp_path / "one", tmp_path / "two"
    for key in ("username", "password", "name"):
        secret(one, f"accounts__anna__{key}", b"one")
    for key in ("username", "password"):
        secret(two, f"accounts__anna__{key}", b"two")
    got = read(text, {"DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME": "env"}, one, two).accounts["anna"]
    values = (got.user.get_secret_value(), got.password.get_secret_value(), got.name, got.unit)
    assert values == ("env", "two", "one", "mmol/L")


def test_no_file_is_needed() -> None:
    """The environment alone is enough."""
    environ = {"DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME": "+1123", "dexcom2mqtt_accounts__Anna__password": "0123"}
    got = load(environ=environ).accounts["anna"]
    assert (got.user.get_secret_value(), got.password.get_secret_value()) == ("+1123", "0123")


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"pw", "pw"),
        (b"pw\n", "pw"),
        (b"pw\r\n", "pw"),
        (b" pw \n", " pw "),
        (b"\xef\xbb\xbfpw", "pw"),
        (b"{a: 1}", "{a: 1}"),
    ],
)
def test_a_secret_file_is_its_text_without_one_newline(tmp_path: Path, content: bytes, value: str) -> None:
    """A secret file's text is the value as it stands, but for one newline at its end."""
    got = read(ANNA, {}, secret(tmp_path, "accounts__anna__password", content))
    assert got.accounts["anna"].password.get_secret_value() == value


def test_a_second_newline_is_a_mistake(tmp_path: Path) -> None:
    """Only one newline is dropped; the file with the mistake is named."""
    secret(tmp_path, "accounts__anna__password", b"pw\n\n")
    place = f"(from the file {tmp_path}/dexcom2mqtt_accounts__anna__password)"
    assert mistakes(ANNA, {}, tmp_path) == (f"accounts.anna.password: {NOT_SHOWN}; allowed: {TEXT} {place}",)


def test_the_usual_folders_of_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's folder is read, and systemd's, which beats it."""
    docker, systemd = tmp_path / "docker", tmp_path / "systemd"
    monkeypatch.setattr(config, "DOCKER_SECRETS", docker)
    secret(docker, "accounts__anna__username", b"docker")
    secret(docker, "accounts__anna__password", b"docker")
    assert load(environ={}).accounts["anna"].password.get_secret_value() == "docker"
    secret(systemd, "accounts__anna__password", b"systemd")
    got = load(environ={"CREDENTIALS_DIRECTORY": str(systemd)}).accounts["anna"]
    assert (got.user.get_secret_value(), got.password.get_secret_value()) == ("docker", "systemd")


def test_secret_files_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    """A folder where a secret should be, and a secret that is no text, are mistakes; other files are not."""
    (tmp_path / "dexcom2mqtt_mqtt__password").mkdir()
    secret(tmp_path, "accounts__anna__password", b"\xff")
    secret(tmp_path, "port", b"\xff")
    (tmp_path / "other").write_bytes(b"\xff")
    got = mistakes(ANNA, {}, tmp_path, tmp_path / "missing", tmp_path / "other")
    assert got == (
        f"{tmp_path}/dexcom2mqtt_accounts__anna__password: is not a text in UTF-8; save it as one",
        f"{tmp_path}/dexcom2mqtt_mqtt__password: cannot be read: Is a directory",
    )


def test_foreign_and_empty_variables_do_not_count() -> None:
    """What container platforms put into the environment, and variables without a value, are ignored."""
    foreign = ["PORT", "PORT_1883_TCP", "MQTT_SERVICE_HOST", "CONFIG", "X__Y", "STALE_AFTER__X", "", "_MQTT__HOST"]
    environ = {f"DEXCOM2MQTT_{name}": "x" for name in foreign} | {"XDEXCOM2MQTT_MQTT__HOST": "x", "MQTT__HOST": "x"}
    empty = {"DEXCOM2MQTT_MQTT__HOST": "", "DEXCOM2MQTT_MQTT__TYPO": "", "DEXCOM2MQTT_ACCOUNTS": ""}
    assert read(ANNA, environ | empty) == read(ANNA)


def test_a_variable_can_hold_a_section() -> None:
    """Where a section belongs, a variable is read as YAML; a variable for one key of it beats that."""
    environ = {
        "DEXCOM2MQTT_ACCOUNTS": "{anna: {region: jp, name: 0x1}}",
        "DEXCOM2MQTT_ACCOUNTS__ANNA__RANGES": "{low: 65}",
        "DEXCOM2MQTT_MQTT": "host: broker\nport: 1\n",
        "DEXCOM2MQTT_MQTT__PORT": "2",
        "DEXCOM2MQTT_MQTT__TLS": "{}",
        "DEXCOM2MQTT_STALE_AFTER": "20",
    }
    got = read(ANNA, environ)
    assert got.accounts["anna"].model_dump(include={"region", "name", "ranges"}) == {
        "region": "jp",
        "name": "0x1",
        "ranges": {"very_low": 54, "low": 65, "high": 180, "very_high": 250},
    }
    assert (got.mqtt.host, got.mqtt.port, got.mqtt.tls, got.stale_after) == ("broker", 2, Tls(), 20)


def test_a_secret_file_can_hold_a_section(tmp_path: Path) -> None:
    """A file for a whole section is read as YAML, too, and beaten by a file for one key of it."""
    secret(tmp_path, "mqtt", b"{host: broker, keepalive: 10}")
    secret(tmp_path, "mqtt__host", b"other")
    got = read(ANNA, {}, tmp_path).mqtt
    assert (got.host, got.keepalive) == ("other", 10)


def test_a_null_section_switches_a_weaker_one_off() -> None:
    """A stronger source can take TLS away that the file asks for."""
    assert read(f"{ANNA}mqtt: {{tls: {{}}}}", {"DEXCOM2MQTT_MQTT__TLS": "null"}).mqtt.tls is None


@pytest.mark.parametrize(
    ("environ", "mistake"),
    [
        (
            {"DEXCOM2MQTT_ACCOUNTS__ANNA__REGION": "usa"},
            (
                "accounts.anna.region: found 'usa'; allowed: us, ous, jp"
                " (from the environment variable DEXCOM2MQTT_ACCOUNTS__ANNA__REGION)"
            ),
        ),
        (
            {"dexcom2mqtt_accounts__anna__pasword": "CANARY"},
            (
                f"accounts.anna.pasword: unknown key; did you mean password? allowed: {ACCOUNT_KEYS}"
                " (from the environment variable dexcom2mqtt_accounts__anna__pasword)"
            ),
        ),
        (
            {"DEXCOM2MQTT_MQTT": "{hots: x}", "DEXCOM2MQTT_MQTT__HOST": "x"},
            (
                f"mqtt.hots: unknown key; did you mean host? allowed: {MQTT_KEYS}"
                " (from the environment variable DEXCOM2MQTT_MQTT)"
            ),
        ),
        (
            {"DEXCOM2MQTT_MQTT__HOST__X": "CANARY"},
            (
                "mqtt.host: found keys or a list; allowed: a text, in quotes"
                " (from the environment variable DEXCOM2MQTT_MQTT__HOST__X)"
            ),
        ),
        (
            {"DEXCOM2MQTT_MQTT": "CANARY"},
            f"mqtt: {NOT_SHOWN}; allowed: keys, indented below it (from the environment variable DEXCOM2MQTT_MQTT)",
        ),
        (
            {"DEXCOM2MQTT_MQTT__TLS": "{a: b"},
            (
                "the environment variable DEXCOM2MQTT_MQTT__TLS, line 1, column 1: a value that begins with [ or {"
                " must be in quotes; else its end or a comma is missing"
            ),
        ),
        (
            {"DEXCOM2MQTT_ACCOUNTS__BRIDGE": "{username: b, password: p}"},
            (
                "accounts.bridge: not usable as a key; allowed: small letters and digits, separated by single _,"
                " such as anna_marie; not bridge (from the environment variable DEXCOM2MQTT_ACCOUNTS__BRIDGE)"
            ),
        ),
        (
            {"DEXCOM2MQTT_MQTT__\n": "x"},
            f"mqtt.?: unknown key; allowed: {MQTT_KEYS} (from the environment variable ?)",
        ),
    ],
)
def test_a_mistake_names_the_variable(environ: dict[str, str], mistake: str) -> None:
    """A mistake that is not in the file says where it is."""
    assert mistakes(ANNA, environ) == (mistake,)


def test_a_mistake_in_the_file_names_no_variable() -> None:
    """A correct variable next to a wrong key in the file is not blamed."""
    got = mistakes(f"{ANNA}mqtt: {{port: x}}", {"DEXCOM2MQTT_MQTT__HOST": "broker"})
    assert got == ("mqtt.port: found 'x'; allowed: a whole number from 1 to 65535",)


# --- which file --------------------------------------------------------------------------------------------


def test_where_the_file_is_looked_for(tmp_path: Path) -> None:
    """The argument beats the variable beats ./config.yaml beats the one in /etc."""
    here, etc = config.DEFAULT_FILES
    for file, name in ((etc, "etc"), (here, "here"), (tmp_path / "env", "env"), (tmp_path / "arg", "arg")):
        file.write_text(account(name=name))
        environ = {"DEXCOM2MQTT_CONFIG": str(file)} if name in {"env", "arg"} else {"DEXCOM2MQTT_CONFIG": ""}
        got = load(tmp_path / "arg" if name == "arg" else None, environ=environ)
        assert got.accounts["anna"].name == name
    assert load(tmp_path / "arg", environ={"DEXCOM2MQTT_CONFIG": "/missing"}).accounts["anna"].name == "arg"


def test_nothing_at_all() -> None:
    """Without any configuration the message says where it belongs and what it looks like."""
    with pytest.raises(ConfigError) as caught:
        load(environ={})
    first, second = caught.value.mistakes
    assert first == f"no configuration: write config.yaml or {config.DEFAULT_FILES[1]}, or name it by --config"
    assert yaml.safe_load(second.partition("below accounts:")[2])["anna"].keys() == {"username", "password"}
    assert second.startswith("accounts: missing, or empty; allowed: at least one;")


@pytest.mark.parametrize("by_variable", [True, False])
@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        (None, "cannot be read: No such file or directory"),
        ("folder", "cannot be read: Is a directory"),
        (b"\xff\xfea\0", "is not a text in UTF-8; save it as one"),
        (b"#" * 524_289, "is larger than 524288 bytes and so cannot be what was meant"),
        (b"CANARY", "no keys such as accounts: and mqtt: in it"),
        (b"- CANARY", "no keys such as accounts: and mqtt: in it"),
    ],
)
def test_a_named_file_must_be_good(
    tmp_path: Path, content: bytes | str | None, mistake: str, *, by_variable: bool
) -> None:
    """A file that was named but cannot be used is a mistake, even if the environment says enough."""
    file = tmp_path / "named.yaml"
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    environ = {"DEXCOM2MQTT_ACCOUNTS": "{anna: {username: a, password: p}}"}
    path = None if by_variable else file
    with pytest.raises(ConfigError) as caught:
        load(path, environ=environ | ({"DEXCOM2MQTT_CONFIG": str(file)} if by_variable else {}))
    assert caught.value.mistakes == (f"{file}: {mistake}",)


def test_a_folder_in_place_of_the_usual_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called config.yaml, as Docker makes it where the file to mount is missing, is told."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"^config\.yaml: cannot be read: Is a directory$"):
        load(environ={})


def test_a_file_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file this user may not read is a mistake."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "c.yaml").write_text(ANNA)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot be read: Permission denied$"):
        load(tmp_path / "c.yaml", environ={})


@pytest.mark.parametrize(
    "text", [b"", b"# nothing\n", b"---\n", b"\xef\xbb\xbf", b"null", b"~\n", b"{}", b"---\n...\n"]
)
def test_an_empty_file_is_no_configuration(text: bytes) -> None:
    """A file that says nothing leaves the accounts missing, and is otherwise fine."""
    (only,) = mistakes(text)
    assert only.startswith("accounts: missing, or empty; allowed: at least one;")
    environ = {"DEXCOM2MQTT_ACCOUNTS": ANNA.removeprefix("accounts: ")}
    assert read(text, environ) == read(b"\xef\xbb\xbf" + ANNA.encode())


# --- mistakes ----------------------------------------------------------------------------------------------

KEY = "not usable as a key; allowed: small letters and digits, separated by single _, such as anna_marie; not bridge"
KEYS_BELOW = "allowed: keys, indented below it"
MISSING = "missing, or empty; allowed"
EITHER = "either username or account_id, and not both"
HOST = "the host alone, without mqtt:// and port"
TOPIC = "letters, digits, _ and -, in levels separated by /"
ANY_TOPIC = "a topic of up to 256 characters, without + and #"
URL = "https://…, or http:// and localhost, without user, ? and #"
FILE = "a file that exists and that this user may read"
TOP_KEYS = "accounts, mqtt, home_assistant, stale_after, log_level"

WRONG_KEYS = {
    "Anna": "Anna", "bridge": "bridge", "a__b": "a__b", "_a": "_a", "a_": "a_", "a-b": "a-b", "": "?", "a b": "?",
    "änna": "?", "a\u00a0b": "?", "[key]": "?", "a/b": "?",
}  # fmt: skip
WRONG_IDS = ["CANARY", UUID[:-1], UUID.replace("-", ""), "00000000-0000-0000-0000-000000000000", f" {UUID}"]
WRONG_URLS = [
    "http://example.com", "http://127.0.0.1.example.com", "http://localhost@example.com", "ftp://localhost",
    "https://", "https://user:CANARY@example.com", "https://example.com/?q", "https://example.com/#f", "https://[zz]",
    "https://example.com:0", "https://example.com:123456", "https://exa mple.com", "example.com", "https://a\\b",
    "https://-..-", "https:///a", "https://a/\\b", "https://a/b c",
]  # fmt: skip
WRONG_HOSTS = ["mqtt://a", "a:1883", "cafe:1883", "a b", "a..b", ".a", "x" * 64, "user@host", "bücher", "a/b"]
WRONG_PORTS = ["0", "65536", "-1", "+1", "1_883", "1883.0", "1e3", "0x1", "٣", "9" * 60]

# What is written, and what is told after "accounts.anna."
ACCOUNTS: list[tuple[dict[str, Any], str]] = [
    ({"password": None}, f"password: {MISSING}: a text, in quotes"),
    ({"password": ""}, f"password: {MISSING}: {TEXT}"),
    ({"password": "p" * 257}, f"password: {NOT_SHOWN}; allowed: {TEXT}"),
    ({"password": "a\tb"}, f"password: {NOT_SHOWN}; allowed: {TEXT}"),
    ({"password": "a\0b"}, f"password: {NOT_SHOWN}; allowed: {TEXT}"),
    ({"password": ["CANARY"]}, "password: found keys or a list; allowed: a text, in quotes"),
    ({"username": "a\x85b"}, f"username: {NOT_SHOWN}; allowed: {TEXT}"),
    ({"username": None}, f"username: {MISSING}: {EITHER}"),
    ({"account_id": UUID}, f"username: {NOT_SHOWN}; allowed: {EITHER}"),
    ({"name": ""}, f"name: {MISSING}: {TEXT}"),
    ({"name": "a\nb"}, f"name: {NOT_SHOWN}; allowed: {TEXT}"),
    ({"pasword": "CANARY"}, f"pasword: unknown key; did you mean password? allowed: {ACCOUNT_KEYS}"),
    ({"REGION": "us"}, f"REGION: unknown key; did you mean region? allowed: {ACCOUNT_KEYS}"),
    ({"[key]": "CANARY"}, f"?: unknown key; allowed: {ACCOUNT_KEYS}"),
    ({"zzz": None}, f"zzz: unknown key; allowed: {ACCOUNT_KEYS}"),
    ({"password:CANARY": None}, f"?: unknown key; did you mean password? allowed: {ACCOUNT_KEYS}"),
    ({"region": "usa"}, "region: found 'usa'; allowed: us, ous, jp"),
    ({"region": "US"}, "region: found 'US'; allowed: us, ous, jp; write us"),
    ({"region": ["CANARY"]}, "region: found keys or a list; allowed: us, ous, jp"),
    ({"region": "x" * 61 + "CANARY"}, f"region: found '{'x' * 60}'; allowed: us, ous, jp"),
    ({"region": "\x1b[2J\u2028"}, r"region: found '\x1b[2J\u2028'; allowed: us, ous, jp"),
    ({"unit": "mmol/l"}, "unit: found 'mmol/l'; allowed: mg/dL, mmol/L; write mmol/L"),
    ({"ranges": {"low": 54}}, "ranges.low: found '54'; allowed: more than 54, which is very_low"),
    ({"ranges": {"high": 300}}, "ranges.very_high: found '250'; allowed: more than 300, which is high"),
    ({"ranges": {"low": 0}}, "ranges.low: found '0'; allowed: a whole number from 1 to 1000"),
    ({"ranges": {"very_high": 1001}}, "ranges.very_high: found '1001'; allowed: a whole number from 1 to 1000"),
    ({"ranges": {"low": "4.0"}}, "ranges.low: found '4.0'; allowed: a whole number from 1 to 1000"),
    ({"ranges": {"lo": 1}}, "ranges.lo: unknown key; did you mean low? allowed: very_low, low, high, very_high"),
    ({"ranges": 70}, f"ranges: {NOT_SHOWN}; {KEYS_BELOW}"),
    *[({"username": None, "account_id": each}, f"account_id: {NOT_SHOWN}; allowed: a UUID, such as {UUID}")
      for each in WRONG_IDS],
    *[({"share_url": url}, f"share_url: {NOT_SHOWN}; allowed: {URL}") for url in WRONG_URLS],
    *[({"share_url": url},
       f"share_url: {NOT_SHOWN}; allowed: https://…, or http:// and localhost, with a host and a port that can be")
      for url in ("https://example.com:70000", "https://[1:2:]", "https://[::::]")],
]  # fmt: skip

# What is written below mqtt, and what is told after "mqtt."
MQTT = [
    ({"host": ""}, f"host: {MISSING}: {HOST}"),
    *[({"host": host}, f"host: {NOT_SHOWN}; allowed: {HOST}") for host in WRONG_HOSTS],
    *[({"port": port}, f"port: found '{port}'; allowed: a whole number from 1 to 65535") for port in WRONG_PORTS],
    ({"username": "u", "password": "p" * 16_384}, f"password: {NOT_SHOWN}; allowed: {TEXT.replace('256', '16383')}"),
    ({"password": "p"}, f"password: {NOT_SHOWN}; allowed: a password only together with mqtt.username"),
    ({"protocol": "4"}, "protocol: found '4'; allowed: auto, 5, 3.1.1"),
    *[({"base_topic": topic}, f"base_topic: found '{topic}'; allowed: {TOPIC}")
      for topic in ("/a", "a/", "a//b", "a b", "a+", "#", "ä")],
    ({"base_topic": ""}, f"base_topic: {MISSING}: {TOPIC}"),
    *[({"client_id": wrong}, f"client_id: {NOT_SHOWN}; allowed: a text of up to 128 characters, without + and #")
      for wrong in ("\t", "a+b", "#", "c" * 129)],
    ({"keepalive": 4}, "keepalive: found '4'; allowed: a whole number from 5 to 65535"),
    ({"tls": True}, f"tls: {NOT_SHOWN}; {KEYS_BELOW}"),
    ({"tls": {"verify": 1}}, "tls.verify: found '1'; allowed: true or false"),
    ({"tls": {"ca_file": "/missing"}}, f"tls.ca_file: found '/missing'; allowed: {FILE}"),
    ({"tls": {"ca_file": "/"}}, f"tls.ca_file: found '/'; allowed: {FILE}"),
    ({"tls": {"ca_file": "/\0"}}, rf"tls.ca_file: found '/\x00'; allowed: {FILE}"),
    ({"tls": {"key_file": "test.yaml"}},
     "tls.key_file: found 'test.yaml'; allowed: cert_file and key_file together, or neither"),
    ({"tls": {"cert_file": "test.yaml"}}, f"tls.key_file: {MISSING}: cert_file and key_file together, or neither"),
]  # fmt: skip

OTHERS = [
    ("accounts: {anna: }", f"accounts.anna: missing, or empty; {KEYS_BELOW}"),
    ("accounts: {anna: CANARY}", f"accounts.anna: {NOT_SHOWN}; {KEYS_BELOW}"),
    ("accounts: [anna]", f"accounts: found keys or a list; {KEYS_BELOW}"),
    ("accounts: CANARY", f"accounts: {NOT_SHOWN}; {KEYS_BELOW}"),
    ('accounts: {a: {username: a, password: "\\uD800"}}', f"accounts.a.password: {NOT_SHOWN}; allowed: {TEXT}"),
    *[(f"accounts: {{'{key}': {{username: a, password: p}}}}", f"accounts.{shown}: {KEY}")
      for key, shown in WRONG_KEYS.items()],
    (f"{ANNA}foo: 1", f"foo: unknown key; allowed: {TOP_KEYS}"),
    (f"{ANNA}acounts: 1", f"acounts: unknown key; did you mean accounts? allowed: {TOP_KEYS}"),
    (f"{ANNA}home_assistant: {{discovery: 2}}", "home_assistant.discovery: found '2'; allowed: true or false"),
    (f"{ANNA}home_assistant: {{discovery_prefix: a/#}}",
     f"home_assistant.discovery_prefix: found 'a/#'; allowed: {TOPIC}"),
    (f"{ANNA}home_assistant: {{status_topic: ''}}", f"home_assistant.status_topic: {MISSING}: {ANY_TOPIC}"),
    *[(f"{ANNA}home_assistant: {{status_topic: {json.dumps(topic)}}}",
       f"home_assistant.status_topic: found {topic!r}; allowed: {ANY_TOPIC}") for topic in ("a/#", "+", "a\0")],
    *[(f"{ANNA}stale_after: {minutes}", f"stale_after: found '{minutes}'; allowed: a whole number from 10 to 60")
      for minutes in ("9", "61", "15.0", "15 min")],
    (f"{ANNA}log_level: Warning", "log_level: found 'Warning'; allowed: debug, info, warning, error; write warning"),
    ("accounts: {a: {username: X, password: p}, b: {username: x, password: q, region: us}}",
     "accounts: found a clash; allowed: one key for each person, but a and b are the same"),
    (f"accounts: {{a: {{account_id: {UUID}, password: p}}, b: {{account_id: {UUID.upper()}, password: p}}}}",
     "accounts: found a clash; allowed: one key for each person, but a and b are the same"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        *[(account(**keys), f"accounts.anna.{mistake}") for keys, mistake in ACCOUNTS],
        *[(ANNA + yaml.safe_dump({"mqtt": keys}), f"mqtt.{mistake}") for keys, mistake in MQTT],
        *OTHERS,
    ],
)
def test_a_mistake_is_named(text: str, mistake: str) -> None:
    """A mistake is told with its place, what was found where that cannot be a secret, and what is allowed."""
    assert mistakes(text) == (mistake,)


def test_a_certificate_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that exists, but not for this user, is a mistake."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    (only,) = mistakes(f"{ANNA}mqtt: {{tls: {{ca_file: test.yaml}}}}")
    assert only == f"mqtt.tls.ca_file: found 'test.yaml'; allowed: {FILE}"


def test_the_same_name_in_two_regions_is_two_persons() -> None:
    """User names belong to a region."""
    got = read("accounts: {a: {username: x, password: p}, b: {username: x, password: p, region: ous}}")
    assert [*got.accounts] == ["a", "b"]


def test_every_mistake_is_told_at_once() -> None:
    """Mistakes in several keys, between keys and between accounts come together."""
    got = mistakes(
        "accounts:\n"
        "  a: {username: x, account_id: bad, unit: x}\n"
        "  b: {username: X, password: p, ranges: {low: 300, very_high: x}, reigon: us}\n"
        "mqtt: {username: \"\\t\", password: p, tls: {cert_file: /missing}, base_topic: '', port: x}\n"
        "stale_after: 1\n",
        {"DEXCOM2MQTT_LOG_LEVEL": "loud", "DEXCOM2MQTT_HOME_ASSISTANT__X": "x"},
    )
    assert [each.partition(":")[0] for each in got] == [
        "accounts.a.account_id",
        "accounts.a.username",
        "accounts.a.password",
        "accounts.a.unit",
        "accounts.b.ranges.high",
        "accounts.b.ranges.very_high",
        "accounts.b.reigon",
        "accounts",
        "mqtt.tls.cert_file",
        "mqtt.tls.key_file",
        "mqtt.port",
        "mqtt.username",
        "mqtt.base_topic",
        "home_assistant.x",
        "stale_after",
        "log_level",
    ]


def test_a_clash_between_variables_names_none_of_them() -> None:
    """What is wrong between accounts of different sources is not told as the mistake of one."""
    environ = {f"DEXCOM2MQTT_ACCOUNTS__{key}": "{username: x, password: p}" for key in "AB"}
    (only,) = mistakes("", environ)
    assert re.fullmatch("accounts: found a clash; allowed: one key for each person, but . and . are the same", only)


def test_every_unreadable_source_is_told_at_once(tmp_path: Path) -> None:
    """Broken YAML in the file, in a variable and in a secret file are three mistakes, each with its source."""
    secret(tmp_path, "accounts", b"a: 'b")
    got = mistakes("a: [b", {"DEXCOM2MQTT_MQTT": "{a"}, tmp_path)
    assert [each.partition(":")[0] for each in got] == [
        "the environment variable DEXCOM2MQTT_MQTT, line 1, column 1",
        f"the file {tmp_path}/dexcom2mqtt_accounts, line 1, column 4",
        "test.yaml, line 1, column 4",
    ]


def test_an_unreadable_source_hides_no_other_mistake() -> None:
    """What is wrong in itself is told beside broken YAML; what may stand in the broken file is not called missing."""
    environ = {
        "DEXCOM2MQTT_STALE_AFTER": "soon",
        "DEXCOM2MQTT_MQTT__HOTS": "broker",
        "DEXCOM2MQTT_ACCOUNTS__ANNA__REGION": "eu",
    }
    got = mistakes("a: [b", environ)
    assert [each.partition(":")[0] for each in got] == [
        "test.yaml, line 1, column 4",
        "accounts.anna.region",
        "mqtt.hots",
        "stale_after",
    ]


@pytest.mark.parametrize("key", ["_env_file", "_build_sources", "_case_sensitive", "layers", "self", "model_config"])
def test_no_key_reaches_the_machinery(key: str) -> None:
    """A key that means something to the library is unknown like any other."""
    (only,) = mistakes(f"{ANNA}{key}: x")
    assert only.startswith(f"{key}: unknown key; ")


# --- broken YAML -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "column", "why"),
    [
        ("a:\n\tb: c", 2, 1, "a tab; indent with spaces"),
        ("a:\n  b: @CANARY", 2, 6, "a value that begins with @, % or `"),
        ("a: %CANARY", 1, 4, "a value that begins with @, % or `"),
        ("a: *CANARY", 1, 4, "a value that begins with *"),
        ("a: *", 1, 4, "a value that begins with *"),
        ("a: &", 1, 4, "a value that begins with &"),
        ("a: !CANARY", 1, 4, "a value that begins with !"),
        ("a: !CANARY x", 1, 4, "a value that begins with !"),
        ("!CANARY a: x", 1, 1, "a value that begins with !"),
        ("a: !!int CANARY", 1, 4, "a value that begins with !"),
        ("a: !!python/object/apply:os.system [CANARY]", 1, 4, "a value that begins with !"),
        ("a: !CANARY!x y", 1, 4, "a value that begins with !"),
        ("a: !%CANARY", 1, 4, "a value that begins with !"),
        ("a: |CANARY", 1, 4, "a value that begins with | or >"),
        ("a: >CANARY", 1, 4, "a value that begins with | or >"),
        ("a: - CANARY", 1, 4, "a value that begins with - or ?"),
        ("a: ? CANARY", 1, 4, "a value that begins with - or ?"),
        ("a: }CANARY", 1, 4, "a value that begins with a comma, ] or }"),
        ("a: [CANARY\nb: c", 1, 4, "a value that begins with [ or {"),
        ("a: {CANARY\nb: c", 1, 4, "a value that begins with [ or {"),
        ('a: "CANARY\\q"', 1, 4, "within double quotes a backslash"),
        ('a: "CANARY\\xq"', 1, 4, "within double quotes a backslash"),
        ("a: b\nc: 'CANARY\nd: e", 2, 4, "a quote is opened here"),
        ("a: CANARY: b", 1, 10, "a second colon"),
        ("a: b\n  c: CANARY", 2, 4, "a second colon"),
        ("a: b\nCANARY\n", 2, 1, "a key without a colon"),
        ("a: 'CANARY'b'", 1, 12, "not indented like the lines above, or behind a closing quote"),
        ("a:\n    b: c\n  d: CANARY", 3, 3, "not indented like the lines above"),
        ("a: b\n---\nc: CANARY", 2, 1, "a second document"),
        ("a: b\nc:\n  a: 1\n  CANARY: 1\n  CANARY: 2", 5, 3, "this key is written a second time"),
        ("a: {<<: {b: c}, <<: {d: e}}", 1, 17, "this key is written a second time"),
        ("a: {<<: CANARY}", 1, 4, "<<: takes a section"),
        ("a: {<<: [CANARY]}", 1, 4, "<<: takes a section"),
        ("? [CANARY]\n: b", 1, 3, "a key that is not a word"),
        ("~: CANARY", 1, 1, "a key that is not a word"),
        ("a: b\nc: CANARY\0", 2, 10, "a character that cannot be seen"),
        ("a: \x1b", 1, 4, "a character that cannot be seen"),
        ('a: "\\UFFFFFFFF"', 1, 7, "not YAML"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: b", 1, 9, "not YAML"),
        ("%YAML 2.0\n--- a", 1, 1, "a second document"),
    ],
)
def test_broken_yaml_is_told_with_line_column_and_cause(text: str, line: int, column: int, why: str) -> None:
    """Broken YAML is told where it is broken and in plain words, which hold nothing of the file."""
    (only,) = mistakes(text)
    assert only.startswith(f"test.yaml, line {line}, column {column}: {why}")
    assert "CANARY" not in only


DEEP = 15_000


@pytest.mark.parametrize(
    "text",
    [
        "[" * DEEP, "{" * DEEP, "- " * DEEP, "? " * DEEP, "{a: " * DEEP, "[" * DEEP + "]" * DEEP,
        "a: &a\n  b: *a", "a: &a {<<: *a}", "&a [*a]", "a: &a [x, *a]",
        "a: &x1 [x]\n" + "".join(f"b{n}: &x{n + 1} [{f'*x{n},' * 9}]\n" for n in range(1, 20)),
        "a: &x1 {k: v}\n" + "".join(f"b{n}: &x{n + 1} {{<<: [{f'*x{n},' * 9}]}}\n" for n in range(1, 20)),
        "a: [" + "x," * 60_000 + "]",
    ],
)  # fmt: skip
def test_bombs_do_not_go_off(text: str) -> None:
    """Endless nesting, aliases that contain themselves or multiply, and endless lists end soon, as mistakes."""
    before = time.process_time()
    (only,) = mistakes(text)
    assert re.match(r"test\.yaml, line \d+, column \d+: (not YAML|too many values)", only)
    assert time.process_time() - before < 5


def test_a_thousand_accounts_fit(tmp_path: Path) -> None:
    """A file with every key of a thousand accounts is read, and in good time."""
    every = {"name": "Anna", "password": "x" * 40, "region": "ous", "unit": "mmol/L"}
    every["share_url"] = "http://127.0.0.1:12345/ShareWebServices/Services"
    ranges = {"very_low": 54, "low": 70, "high": 180, "very_high": 250}
    accounts = {f"a{n}": every | {"username": f"anna{n}@example.com", "ranges": ranges} for n in range(1000)}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"accounts": accounts}))
    before = time.process_time()
    assert len(config.load(file, environ={}, secrets=()).accounts) == 1000
    assert time.process_time() - before < 10


def test_many_levels_of_keys_do_not_matter() -> None:
    """A variable whose name has thousands of levels is an unknown key, in good time."""
    name = "DEXCOM2MQTT_MQTT" + "__A" * DEEP
    got = mistakes(ANNA, {name: "x", name + "__B": "y"})
    assert got == (f"mqtt.a: unknown key; allowed: {MQTT_KEYS} (from the environment variable ?)",)


# --- properties --------------------------------------------------------------------------------------------


def try_all(content: bytes, environ: Mapping[str, str], folder: Path) -> ConfigError | Settings:
    file = folder / "property.yaml"
    file.write_bytes(content)
    try:
        return load(file, environ=environ, secrets=[])
    except ConfigError as error:
        return error


@properties
@given(st.binary(max_size=300))
@example(b"\xef\xbb\xbf\xef\xbb\xbf")
@example(b"%TAG ! tag:%ff\n--- !a b")
def test_any_bytes(folder: Path, content: bytes) -> None:
    """Whatever a file holds, it is settings or a ConfigError."""
    assert isinstance(try_all(content, {}, folder), ConfigError)


@properties
@given(st.text("ab:-?[]{}!&*|>'\"%@`#,~<.\\/ \n\t\u0085\u2028\ufeffxU0\0", max_size=60))
def test_any_punctuation(folder: Path, text: str) -> None:
    """Whatever YAML's own characters are put together to, it is settings or a ConfigError."""
    assert isinstance(try_all(text.encode(), {}, folder), ConfigError)
    outcome = try_all(ANNA.encode(), {"DEXCOM2MQTT_MQTT": text}, folder)
    assert isinstance(outcome, Settings | ConfigError)


KEYS = sorted({key for model in MODELS for key in model.model_fields} | {"anna", "b", "<<"})
PLACES = [f"DEXCOM2MQTT_{place}" for place in ("ACCOUNTS", "MQTT", "STALE_AFTER", "HOME_ASSISTANT")]
PLACES += [f"DEXCOM2MQTT_MQTT__{key.upper()}" for key in Mqtt.model_fields]
PLACES += [f"DEXCOM2MQTT_ACCOUNTS__ANNA__{key.upper()}" for key in Account.model_fields]
variables = st.sampled_from(PLACES) | st.text(max_size=9).map("DEXCOM2MQTT_MQTT__".__add__) | st.text(max_size=9)


@properties
@given(st.dictionaries(variables, st.text(max_size=30), max_size=8))
@example({"DEXCOM2MQTT_MQTT__HOST": "\udc80"})
def test_any_environment(folder: Path, environ: dict[str, str]) -> None:
    """Whatever the environment holds, it is settings or a ConfigError."""
    outcome = try_all(ANNA.encode(), environ, folder)
    assert isinstance(outcome, ConfigError) or outcome.accounts["anna"].name


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["us", "5"])
keys = st.sampled_from(KEYS) | st.text(max_size=5)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5), max_leaves=25
)


@properties
@example({"[key]": None, "accounts": {"[key]": {"[key]": 1}, "[key] ": 1}})
@given(st.dictionaries(st.sampled_from([*Settings.model_fields]) | keys, trees, max_size=5))
def test_any_structure(folder: Path, tree: dict[str, Any]) -> None:
    """Whatever a file says in proper YAML, it is settings or a ConfigError."""
    environ = {"DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME": "a", "DEXCOM2MQTT_ACCOUNTS__ANNA__PASSWORD": "p"}
    outcome = try_all(yaml.safe_dump(tree).encode(), environ, folder)
    assert isinstance(outcome, ConfigError) or outcome.accounts["anna"].user.get_secret_value() == "a"


@properties
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=256))
def test_any_password(folder: Path, password: str) -> None:
    """Whatever can be typed can be a password, by each of the three ways."""
    name = "ACCOUNTS__ANNA__PASSWORD"
    quoted = account(password=password)
    (folder / "secrets").mkdir(exist_ok=True)
    (folder / "secrets" / f"dexcom2mqtt_{name.lower()}").write_bytes(f"{password}\n".encode())
    for text, environ, secrets in (
        (quoted, {}, []),
        (ANNA, {f"DEXCOM2MQTT_{name}": password}, []),
        (ANNA, {}, [folder / "secrets"]),
    ):
        file = folder / "password.yaml"
        file.write_text(text)
        got = load(file, environ=environ, secrets=secrets).accounts["anna"]
        assert got.password.get_secret_value() == password.removeprefix("\ufeff" if secrets else "")


# --- secrets in mistakes -----------------------------------------------------------------------------------

CANARY = "s3cr3t/Canary!"
DISGUISES = [
    CANARY, f"'{CANARY}'", f"'{CANARY}\\t'", f'"{CANARY}\\t"', f"[{CANARY}]", f"{{{CANARY}}}", f"{{{CANARY}: x}}",
    f"{{x: {CANARY}}}", f"{{host:{CANARY}}}", f"*{CANARY}", f"&{CANARY} x", f"!{CANARY} x", f"!!int {CANARY}",
    f"'{CANARY}", f'"{CANARY}', f'"{CANARY}\\q"', f"|{CANARY}", f">{CANARY}", f"[{CANARY}", f"{{{CANARY}",
    f"@{CANARY}", f"%{CANARY}", f"`{CANARY}", f"{CANARY}: x", f"- {CANARY}", f"? {CANARY}", f"{CANARY}\0",
    f"a {CANARY}" * 50, f"'{CANARY}' {CANARY}", f"http://u:{CANARY}@h", f"\n{CANARY}", f"\n {CANARY}\n  x: y\n",
]  # fmt: skip


def hidden_places() -> list[tuple[str, ...]]:
    """Name every place whose value must not be shown, known or not."""
    shown = {*Ranges.model_fields, *HomeAssistant.model_fields, *Tls.model_fields} | {
        *("region", "unit", "port", "protocol", "base_topic", "keepalive", "stale_after", "log_level")
    }
    return [
        (*place, key)
        for place, model in SECTIONS.items()
        for key in (*model.model_fields, "unknown")
        if key not in shown
    ]


@pytest.mark.parametrize("place", hidden_places(), ids=".".join)
def test_no_secret_in_any_mistake(folder: Path, place: tuple[str, ...]) -> None:
    """A secret at any place, in any disguise and from any source, is in no message and in no traceback."""
    indented = "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(place))[:-1]
    variable = f"DEXCOM2MQTT_{'__'.join(place).upper()}"
    twin = f"anchors: &{CANARY} {CANARY}\n{indented} *{CANARY}\n"
    outcomes = [try_all(twin.encode(), {}, folder)]
    for disguise in DISGUISES:
        outcomes.append(try_all(f"{indented} {disguise}\n".encode(), {}, folder))
        outcomes.append(try_all(b"mqtt: {port: x}", {variable: disguise}, folder))
    told = [each for each in outcomes if isinstance(each, ConfigError)]
    assert len(told) > len(DISGUISES)
    for error in told:
        words = "".join(traceback.format_exception(error)) + repr(error)
        assert "Canary" not in words
        assert "s3cr3t" not in words


def test_values_are_shown_by_permission_only() -> None:
    """Of all keys, only those known to hold no secret show their value; a new key has to be thought about."""
    everything = {key for model in MODELS for key in model.model_fields}
    sections = {"accounts", "mqtt", "home_assistant", "ranges", "tls"}
    assert everything - config._SHOWN - sections == {  # noqa: SLF001  # the list itself is the point
        *("username", "password", "account_id", "client_id", "host", "share_url", "name")
    }


# --- warnings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode", "warned"),
    [
        (ANNA, 0o600, False),
        (ANNA, 0o640, True),
        (ANNA, 0o604, True),
        (ANNA, 0o644, True),
        (ANNA, 0o611, False),
        ("mqtt: {username: u, password: p}", 0o644, True),
        ("accounts: {anna: {username: u}}", 0o644, False),
        ("stale_after: 20", 0o644, False),
    ],
)
def test_a_password_that_others_can_read_earns_a_warning(tmp_path: Path, text: str, mode: int, *, warned: bool) -> None:
    """A file with a password in it that others may read is told with the command that mends it."""
    file = tmp_path / "my config.yaml"
    file.write_text(text)
    file.chmod(mode)
    environ = {"DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME": "a", "DEXCOM2MQTT_ACCOUNTS__ANNA__PASSWORD": "p"}
    remedy = f"chmod 600 '{file}'"
    expected = (f"{file}: holds a password, and others on this machine may read it; mend it with: {remedy}",)
    assert load(file, environ=environ).warnings == (expected if warned else ())
    os.system(remedy)  # noqa: S605  # the command itself is what is tested
    assert load(file, environ=environ).warnings == ()


def test_the_remedy_does_not_lock_the_daemon_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another user's is handed over before it is closed to all others."""
    file = tmp_path / "c.yaml"
    file.write_text(ANNA)
    file.chmod(0o640)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    (warning,) = load(file, environ={}).warnings
    assert warning.endswith(f"mend it with: sudo chown 4711 {file} && sudo chmod 600 {file}")


def test_a_credential_of_systemd_earns_no_warning(tmp_path: Path) -> None:
    """Where systemd hands the file over it looks open to a group and is not; any other file beside it counts."""
    file = tmp_path / "config.yaml"
    file.write_text(ANNA)
    file.chmod(0o440)
    assert load(file, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}).warnings == ()
    assert load(file, environ={"CREDENTIALS_DIRECTORY": str(tmp_path / "other")}).warnings != ()


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
    """Readings that cross the network unencrypted are told, with what to write."""
    got = read(f"{ANNA}mqtt: {mqtt}").warnings
    assert [each.startswith("mqtt: the broker is on another machine") and "tls: {}" in each for each in got] == (
        [True] if warned else []
    )


# --- the schema and the example ----------------------------------------------------------------------------


def properties_of(tree: dict[str, Any], node: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk through the schema, naming each key's place; an account's key is *."""
    for option in (node, *node.get("anyOf", ())):
        found = tree["$defs"][option["$ref"].rpartition("/")[2]] if "$ref" in option else option
        children = {**found.get("properties", {})}
        if "patternProperties" in found:
            (children["*"],) = found["patternProperties"].values()
        for key, child in children.items():
            yield f"{place}{key}", child
            yield from properties_of(tree, child, f"{place}{key}.")
        if children:
            assert found["additionalProperties"] is False
            assert "required" not in found


def test_the_schema_knows_every_key() -> None:
    """The schema is of draft 2020-12, describes each key, allows no other, and requires none."""
    tree = json.loads(schema())
    assert tree["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    places = dict(properties_of(tree, tree))
    expected = {(*place, key) for place, model in SECTIONS.items() for key in model.model_fields}
    assert places.keys() == {".".join(each).replace("anna", "*") for each in expected} | {"accounts.*"}
    assert [place for place, node in places.items() if place != "accounts.*" and not node.get("description")] == []
    (pattern,) = tree["properties"]["accounts"]["anyOf"][0]["patternProperties"]
    assert [bool(re.search(pattern, key)) for key in ("anna_2", "bridge", "bridges", "A", "a__b")] == [1, 0, 1, 0, 0]


def types_of(node: dict[str, Any]) -> list[str]:
    """Name the types that a key's value may have, as the schema says it."""
    own = node.get("type", [])
    return [
        *([own] if isinstance(own, str) else own),
        *(one for each in node.get("anyOf", ()) for one in types_of(each)),
    ]


@pytest.mark.parametrize(
    ("place", "types"),
    [
        ("accounts.*.password", ["string", "number", "boolean"]),
        ("accounts.*.username", ["string", "number", "boolean", "null"]),
        ("accounts.*.name", ["string", "number", "boolean", "null"]),
        ("mqtt.client_id", ["string", "number", "boolean", "null"]),
        ("mqtt.port", ["integer", "null"]),
        ("mqtt.tls.verify", ["boolean", "null"]),
        ("accounts.*.region", ["string", "null"]),
        ("mqtt.tls.ca_file", ["string", "null"]),
    ],
)
def test_the_schema_allows_what_may_be_written(place: str, types: list[str]) -> None:
    """To an editor an unquoted text may look like a number; a key with a default may be empty."""
    tree = json.loads(schema())
    assert types_of(dict(properties_of(tree, tree))[place]) == types


def test_the_schema_knows_limits_and_choices() -> None:
    """Numbers have their limits in the schema, and choices are listed, 5 as a number, too."""
    tree = json.loads(schema())
    places = dict(properties_of(tree, tree))
    stale_after, protocol = places["stale_after"]["anyOf"][0], places["mqtt.protocol"]["anyOf"][0]
    assert (stale_after["minimum"], stale_after["maximum"], stale_after["default"]) == (10, 60, 15)
    assert protocol["enum"] == ["auto", 5, "5", "3.1.1"]


def example_with_everything_on() -> dict[str, Any]:
    """Read the example as an editor does, with the keys that are switched off switched on."""
    tree = yaml.safe_load(re.sub(r"(?m)^( *)#( *[a-z_]+:)", r"\1\2", EXAMPLE.read_text()))
    assert isinstance(tree, dict)
    return tree


def test_the_example_is_valid() -> None:
    """The example can be used as it stands."""
    (name,) = {each.name for each in load(EXAMPLE, environ={}).accounts.values()}
    assert name == "Anna"


def test_the_example_names_every_key() -> None:
    """The example has every key there is, and no other."""

    def places(node: object, place: str = "") -> Iterator[str]:
        for key, child in node.items() if isinstance(node, dict) else ():
            yield f"{place}{key}"
            yield from places(child, f"{place}{key}.")

    tree = json.loads(schema())
    shown = {each.replace("accounts.anna", "accounts.*") for each in places(example_with_everything_on())}
    assert shown == {place for place, _ in properties_of(tree, tree)}


def test_the_example_shows_the_defaults() -> None:
    """Every value in the example but the account's own is the one that holds without it."""
    shown = example_with_everything_on()
    default = read(ANNA).model_dump()
    default["mqtt"]["tls"] = Tls().model_dump()
    for tree in (shown, default):
        for key in ("username", "password", "account_id"):
            del tree["accounts"]["anna"][key]
    assert shown == default
