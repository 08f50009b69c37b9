"""Every problem in the configuration: its place and its text, without secrets."""

import json
import os
import re
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dexcom2mqtt.config import loading
from dexcom2mqtt.config.loading import load
from dexcom2mqtt.config.problems import ConfigError
from dexcom2mqtt.config.settings import Account, HomeAssistant, Mqtt, Ranges, Settings, Shard, Tls, keys_of
from tests.support.configuration import (
    ACCOUNT_KEYS,
    ANNA,
    MODELS,
    MQTT_KEYS,
    NOT_SHOWN,
    SECTIONS,
    TEXT,
    UUID,
    account,
    problems,
    read,
    secret,
)

properties = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


# --- problems ----------------------------------------------------------------------------------------------


KEY = "invalid key; allowed: lowercase letters and digits, separated by single _, such as anna_marie; not bridge"
SECTION = "a section with indented keys"
NO_SECTION = f"expected {SECTION} (value hidden)"
SWITCH = f"true, null, or {SECTION}"
MISSING = "missing or empty; allowed"
EITHER = "either username or account_id, not both"
HOST = "a host name or address, without mqtt:// or port"
TOPIC = "letters, digits, _ and -, in levels separated by /"
ANY_TOPIC = "a topic of up to 256 characters, without + or #"
URL = "https://…, or http:// on localhost, without user, ? or #"
FILE = "an existing file that this user may read"
FOLDER = "an existing folder that this user may read"
TOP_KEYS = "accounts, mqtt, home_assistant, statistics, web, shard, accounts_dir, stale_after, log_level"

WRONG_KEYS = {
    "Anna": "Anna", "bridge": "bridge", "a__b": "a__b", "_a": "_a", "a_": "a_", "a-b": "a-b", "": "?", "a b": "?",
    "änna": "?", "[key]": "?", "a/b": "?",
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

# What is written, and the problem after "accounts.anna."
ACCOUNTS: list[tuple[dict[str, Any], str]] = [
    ({"password": None}, f"password: {MISSING}: text in quotes"),
    ({"password": ""}, f"password: {MISSING}: {TEXT}"),
    ({"password": "p" * 257}, f"password: {NOT_SHOWN}; allowed: {TEXT}"),
    ({"password": "a\tb"}, f"password: {NOT_SHOWN}; allowed: {TEXT}"),
    ({"password": "a\0b"}, f"password: {NOT_SHOWN}; allowed: {TEXT}"),
    ({"password": ["CANARY"]}, "password: found keys or a list; allowed: text in quotes"),
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
    ({"ranges": {"low": 54}}, "ranges.low: found '54'; allowed: more than 54, the value of very_low"),
    ({"ranges": {"high": 300}}, "ranges.very_high: found '250'; allowed: more than 300, the value of high"),
    ({"ranges": {"low": 0}}, "ranges.low: found '0'; allowed: a whole number from 1 to 1000"),
    ({"ranges": {"very_high": 1001}}, "ranges.very_high: found '1001'; allowed: a whole number from 1 to 1000"),
    ({"ranges": {"low": "4.0"}}, "ranges.low: found '4.0'; allowed: a whole number from 1 to 1000"),
    ({"ranges": {"lo": 1}}, "ranges.lo: unknown key; did you mean low? allowed: very_low, low, high, very_high"),
    ({"ranges": 70}, f"ranges: {NO_SECTION}"),
    *[({"username": None, "account_id": each}, f"account_id: {NOT_SHOWN}; allowed: a UUID, such as {UUID}")
      for each in WRONG_IDS],
    *[({"share_url": url}, f"share_url: {NOT_SHOWN}; allowed: {URL}") for url in WRONG_URLS],
    *[({"share_url": url},
       f"share_url: {NOT_SHOWN}; allowed: https://…, or http:// on localhost, with a valid host and port")
      for url in ("https://example.com:70000", "https://[1:2:]", "https://[::::]")],
]  # fmt: skip

# What is written below mqtt, and the problem after "mqtt."
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
    *[({"client_id": wrong}, f"client_id: {NOT_SHOWN}; allowed: up to 128 characters, without + or #")
      for wrong in ("\t", "a+b", "#", "c" * 129)],
    ({"keepalive": 4}, "keepalive: found '4'; allowed: a whole number from 5 to 65535"),
    ({"tls": 3}, f"tls: expected {SWITCH} (value hidden)"),
    ({"tls": {"verify": 1}}, "tls.verify: found '1'; allowed: true or false"),
    ({"tls": {"ca_file": "/missing"}}, f"tls.ca_file: found '/missing'; allowed: {FILE}"),
    ({"tls": {"ca_file": "/"}}, f"tls.ca_file: found '/'; allowed: {FILE}"),
    ({"tls": {"ca_file": "/\0"}}, rf"tls.ca_file: found '/\x00'; allowed: {FILE}"),
    ({"tls": {"key_file": "test.yaml"}},
     "tls.key_file: found 'test.yaml'; allowed: cert_file and key_file together, or neither"),
    ({"tls": {"cert_file": "test.yaml"}}, f"tls.key_file: {MISSING}: cert_file and key_file together, or neither"),
]  # fmt: skip

OTHERS = [
    ("accounts: {anna: }", f"accounts.anna: {MISSING}: {SECTION}"),
    ("accounts: {anna: CANARY}", f"accounts.anna: {NO_SECTION}"),
    ("accounts: [anna]", f"accounts: found a list; expected {SECTION}"),
    ("accounts: CANARY", f"accounts: {NO_SECTION}"),
    ('accounts: {a: {username: a, password: "\\uD800"}}', f"accounts.a.password: {NOT_SHOWN}; allowed: {TEXT}"),
    *[(f"accounts: {{'{key}': {{username: a, password: p}}}}", f"accounts.{shown}: {KEY}")
      for key, shown in WRONG_KEYS.items()],
    (f"{ANNA}shard: {{index: 3, count: 3}}",
     "shard.index: found '3'; allowed: less than 3, the value of shard.count, because it begins at 0"),
    (f"{ANNA}shard: {{index: 1}}",
     "shard.index: found '1'; allowed: less than 1, the value of shard.count, because it begins at 0"),
    (f"{ANNA}shard: {{index: -1, count: 2}}", "shard.index: found '-1'; allowed: a whole number from 0 to 999"),
    (f"{ANNA}shard: {{index: 5, count: 0}}", "shard.count: found '0'; allowed: a whole number from 1 to 1000"),
    (f"{ANNA}shard: {{count: 1001}}", "shard.count: found '1001'; allowed: a whole number from 1 to 1000"),
    (f"{ANNA}shard: {{size: 2}}", "shard.size: unknown key; allowed: index, count"),
    (f"{ANNA}shard: 2", f"shard: {NO_SECTION}"),
    *[(f"{ANNA}accounts_dir: {place}", f"accounts_dir: found '{place}'; allowed: {FOLDER}")
      for place in ("/missing", "/etc/hostname")],
    ("accounts_dir: /missing", f"accounts_dir: found '/missing'; allowed: {FOLDER}"),
    (f"{ANNA}accounts_dir: [a]", "accounts_dir: found keys or a list; allowed: text in quotes"),
    (f"{ANNA}foo: 1", f"foo: unknown key; allowed: {TOP_KEYS}"),
    (f"{ANNA}acounts: 1", f"acounts: unknown key; did you mean accounts? allowed: {TOP_KEYS}"),
    (f"{ANNA}home_assistant: {{discovery: 2}}", "home_assistant.discovery: found '2'; allowed: true or false"),
    (f"{ANNA}home_assistant: {{discovery_prefix: a/#}}",
     f"home_assistant.discovery_prefix: found 'a/#'; allowed: {TOPIC}"),
    (f"{ANNA}home_assistant: {{status_topic: ''}}", f"home_assistant.status_topic: {MISSING}: {ANY_TOPIC}"),
    *[(f"{ANNA}home_assistant: {{status_topic: {json.dumps(topic)}}}",
       f"home_assistant.status_topic: found {topic!r}; allowed: {ANY_TOPIC}") for topic in ("a/#", "+", "a\0")],
    (f"{ANNA}web:", f"web: {MISSING}: {SWITCH}"),
    (f"{ANNA}web: 8017", f"web: expected {SWITCH} (value hidden)"),
    *[(f"{ANNA}web: {{port: {port}}}", f"web.port: found '{port}'; allowed: a whole number from 1 to 65535")
      for port in ("0", "65536")],
    (f"{ANNA}web: {{host: 'http://0.0.0.0'}}",
     f"web.host: {NOT_SHOWN}; allowed: an address or name of this machine, without http:// or port"),
    *[(f"{ANNA}web: {{token: {json.dumps(token)}}}",
       f"web.token: {NOT_SHOWN}; allowed: up to 128 ASCII letters, digits and symbols, without spaces")
      for token in ("a b", "ä", "t" * 129, "a\t")],
    *[(f"{ANNA}stale_after: {minutes}", f"stale_after: found '{minutes}'; allowed: a whole number from 10 to 60")
      for minutes in ("9", "61", "15.0", "15 min")],
    (f"{ANNA}statistics: 7d", "statistics: found '7d'; allowed: 90d, 24h, off"),
    (f"{ANNA}log_level: Warning", "log_level: found 'Warning'; allowed: debug, info, warning, error; write warning"),
    ("accounts: {a: {username: X, password: p}, b: {username: x, password: q, region: us}}",
     "accounts: a and b are the same person; keep only one"),
    (f"accounts: {{a: {{account_id: {UUID}, password: p}}, b: {{account_id: {UUID.upper()}, password: p}}}}",
     "accounts: a and b are the same person; keep only one"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        *[(account(**keys), f"accounts.anna.{problem}") for keys, problem in ACCOUNTS],
        *[(ANNA + yaml.safe_dump({"mqtt": keys}), f"mqtt.{problem}") for keys, problem in MQTT],
        *OTHERS,
    ],
)
def test_a_problem_is_named(text: str, problem: str) -> None:
    """A problem has its place, what was found unless it could be a secret, and what is allowed."""
    assert problems(text) == (problem,)


def test_a_certificate_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that exists, but not for this user, is a problem."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    (only,) = problems(f"{ANNA}mqtt: {{tls: {{ca_file: test.yaml}}}}")
    assert only == f"mqtt.tls.ca_file: found 'test.yaml'; allowed: {FILE}"


def test_the_same_name_in_two_regions_is_two_persons() -> None:
    """User names belong to a region."""
    got = read("accounts: {a: {username: x, password: p}, b: {username: x, password: p, region: ous}}")
    assert [*got.accounts] == ["a", "b"]


def test_every_problem_is_reported_at_once() -> None:
    """Problems in several keys, between keys and between accounts are reported together."""
    got = problems(
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


def test_a_conflict_between_variables_names_none_of_them() -> None:
    """A conflict between accounts of different sources is not reported as the problem of one source."""
    environ = {f"DEXCOM2MQTT_ACCOUNTS__{key}": "{username: x, password: p}" for key in "AB"}
    (only,) = problems("", environ)
    assert re.fullmatch("accounts: . and . are the same person; keep only one", only)


def test_every_unreadable_source_is_reported_at_once(tmp_path: Path) -> None:
    """Broken YAML in the file, in a variable and in a secret file are three problems, each with its source."""
    secret(tmp_path, "accounts", b"a: 'b")
    got = problems("a: [b", {"DEXCOM2MQTT_MQTT": "{a"}, tmp_path)
    assert [each.partition(":")[0] for each in got] == [
        "the environment variable DEXCOM2MQTT_MQTT, line 1, column 1",
        f"the file {tmp_path}/dexcom2mqtt_accounts, line 1, column 4",
        "test.yaml, line 1, column 4",
    ]


def test_an_unreadable_source_hides_no_other_problem() -> None:
    """Invalid values are reported beside broken YAML; a key that may be in the broken file is not called missing."""
    environ = {
        "DEXCOM2MQTT_STALE_AFTER": "soon",
        "DEXCOM2MQTT_MQTT__HOTS": "broker",
        "DEXCOM2MQTT_ACCOUNTS__ANNA__REGION": "eu",
    }
    got = problems("a: [b", environ)
    assert [each.partition(":")[0] for each in got] == [
        "test.yaml, line 1, column 4",
        "accounts.anna.region",
        "mqtt.hots",
        "stale_after",
    ]


@pytest.mark.parametrize("key", ["_env_file", "_build_sources", "_case_sensitive", "layers", "self", "model_config"])
def test_no_key_reaches_the_machinery(key: str) -> None:
    """A key that means something to the library is unknown like any other."""
    (only,) = problems(f"{ANNA}{key}: x")
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
        ('a: "CANARY\\q"', 1, 4, "a backslash is special within double quotes"),
        ('a: "CANARY\\xq"', 1, 4, "a backslash is special within double quotes"),
        ("a: b\nc: 'CANARY\nd: e", 2, 4, "a quote is opened here"),
        ("a: CANARY: b", 1, 10, "a second colon"),
        ("a: b\n  c: CANARY", 2, 4, "a second colon"),
        ("a: b\nCANARY\n", 2, 1, "a key without a colon"),
        ("a: 'CANARY'b'", 1, 12, "not indented like the lines above, or text after a closing quote"),
        ("a:\n    b: c\n  d: CANARY", 3, 3, "not indented like the lines above"),
        ("a: b\n---\nc: CANARY", 2, 1, "a second document"),
        ("a: b\nc:\n  a: 1\n  CANARY: 1\n  CANARY: 2", 5, 3, "this key appears a second time"),
        ("a: {<<: {b: c}, <<: {d: e}}", 1, 17, "this key appears a second time"),
        ("a: {<<: CANARY}", 1, 4, "<<: needs the alias of a section"),
        ("a: {<<: [CANARY]}", 1, 4, "<<: needs the alias of a section"),
        ("? [CANARY]\n: b", 1, 3, "a key that is not a word"),
        ("~: CANARY", 1, 1, "a key that is not a word"),
        ("a: b\nc: CANARY\0", 2, 10, "an invisible character"),
        ("a: \x1b", 1, 4, "an invisible character"),
        ('a: "\\UFFFFFFFF"', 1, 7, "not valid YAML"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: b", 1, 9, "not valid YAML"),
        ("%YAML 2.0\n--- a", 1, 1, "a second document"),
    ],
)
def test_broken_yaml_is_reported_with_line_column_and_cause(text: str, line: int, column: int, why: str) -> None:
    """The message says where the YAML is broken and why, in plain words and without quoting the file."""
    (only,) = problems(text)
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
    """Endless nesting, aliases that contain themselves or multiply, and endless lists soon end as problems."""
    before = time.process_time()
    (only,) = problems(text)
    assert re.match(r"test\.yaml, line \d+, column \d+: (not valid YAML|too many values)", only)
    assert time.process_time() - before < 5


def test_a_thousand_accounts_fit(tmp_path: Path) -> None:
    """A file with every key of a thousand accounts is read, quickly."""
    every = {"name": "Anna", "password": "x" * 40, "region": "ous", "unit": "mmol/L"}
    every["share_url"] = "http://127.0.0.1:12345/ShareWebServices/Services"
    ranges = {"very_low": 54, "low": 70, "high": 180, "very_high": 250}
    accounts = {f"a{n}": every | {"username": f"anna{n}@example.com", "ranges": ranges} for n in range(1000)}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"accounts": accounts}))
    before = time.process_time()
    assert len(loading.load(file, environ={}, secrets=()).accounts) == 1000
    assert time.process_time() - before < 10


def test_many_levels_of_keys_do_not_matter() -> None:
    """A variable whose name has thousands of levels is an unknown key, quickly."""
    name = "DEXCOM2MQTT_MQTT" + "__A" * DEEP
    got = problems(ANNA, {name: "x", name + "__B": "y"})
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
    """Any file content gives settings or a ConfigError."""
    assert isinstance(try_all(content, {}, folder), ConfigError)


@properties
@given(st.text("ab:-?[]{}!&*|>'\"%@`#,~<.\\/ \n\t\u0085\u2028\ufeffxU0\0", max_size=60))
def test_any_punctuation(folder: Path, text: str) -> None:
    """Any mix of YAML's special characters gives settings or a ConfigError."""
    assert isinstance(try_all(text.encode(), {}, folder), ConfigError)
    outcome = try_all(ANNA.encode(), {"DEXCOM2MQTT_MQTT": text}, folder)
    assert isinstance(outcome, Settings | ConfigError)


KEYS = sorted({key for model in MODELS for key in keys_of(model)} | {"anna", "b", "<<"})
PLACES = [f"DEXCOM2MQTT_{place}" for place in ("ACCOUNTS", "MQTT", "STALE_AFTER", "HOME_ASSISTANT")]
PLACES += [f"DEXCOM2MQTT_MQTT__{key.upper()}" for key in keys_of(Mqtt)]
PLACES += [f"DEXCOM2MQTT_ACCOUNTS__ANNA__{key.upper()}" for key in keys_of(Account)]
variables = st.sampled_from(PLACES) | st.text(max_size=9).map("DEXCOM2MQTT_MQTT__".__add__) | st.text(max_size=9)


@properties
@given(st.dictionaries(variables, st.text(max_size=30), max_size=8))
@example({"DEXCOM2MQTT_MQTT__HOST": "\udc80"})
def test_any_environment(folder: Path, environ: dict[str, str]) -> None:
    """Any environment gives settings or a ConfigError."""
    outcome = try_all(ANNA.encode(), environ, folder)
    assert isinstance(outcome, ConfigError) or outcome.accounts["anna"].name


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["us", "5"])
keys = st.sampled_from(KEYS) | st.text(max_size=5)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5), max_leaves=25
)


@properties
@example({"[key]": None, "accounts": {"[key]": {"[key]": 1}, "[key] ": 1}})
@given(st.dictionaries(st.sampled_from([*keys_of(Settings)]) | keys, trees, max_size=5))
def test_any_structure(folder: Path, tree: dict[str, Any]) -> None:
    """Any valid YAML gives settings or a ConfigError."""
    environ = {"DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME": "a", "DEXCOM2MQTT_ACCOUNTS__ANNA__PASSWORD": "p"}
    outcome = try_all(yaml.safe_dump(tree).encode(), environ, folder)
    assert isinstance(outcome, ConfigError) or outcome.accounts["anna"].user.get_secret_value() == "a"


@properties
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=256).filter("\ufeff".__ne__))
def test_any_password(folder: Path, password: str) -> None:
    """Anything that can be typed can be a password, from each of the three sources; a byte order mark alone cannot."""
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


# --- secrets in problems -----------------------------------------------------------------------------------


CANARY = "s3cr3t/Canary!"
DISGUISES = [
    CANARY, f"'{CANARY}'", f"'{CANARY}\\t'", f'"{CANARY}\\t"', f"[{CANARY}]", f"{{{CANARY}}}", f"{{{CANARY}: x}}",
    f"{{x: {CANARY}}}", f"{{host:{CANARY}}}", f"*{CANARY}", f"&{CANARY} x", f"!{CANARY} x", f"!!int {CANARY}",
    f"'{CANARY}", f'"{CANARY}', f'"{CANARY}\\q"', f"|{CANARY}", f">{CANARY}", f"[{CANARY}", f"{{{CANARY}",
    f"@{CANARY}", f"%{CANARY}", f"`{CANARY}", f"{CANARY}: x", f"- {CANARY}", f"? {CANARY}", f"{CANARY}\0",
    f"a {CANARY}" * 50, f"'{CANARY}' {CANARY}", f"http://u:{CANARY}@h", f"\n{CANARY}", f"\n {CANARY}\n  x: y\n",
]  # fmt: skip


def hidden_places() -> list[tuple[str, ...]]:
    """Name every place whose value must be hidden, known or not."""
    shown = {*keys_of(Ranges), *keys_of(HomeAssistant), *keys_of(Tls), *keys_of(Shard), "accounts_dir"} | {
        *("region", "unit", "port", "protocol", "base_topic", "keepalive", "statistics", "stale_after", "log_level")
    }
    return [
        (*place, key) for place, model in SECTIONS.items() for key in (*keys_of(model), "unknown") if key not in shown
    ]


@pytest.mark.parametrize("place", hidden_places(), ids=".".join)
def test_no_secret_in_any_problem(folder: Path, place: tuple[str, ...]) -> None:
    """A secret at any place, in any disguise and from any source, appears in no message or traceback."""
    indented = "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(place))[:-1]
    variable = f"DEXCOM2MQTT_{'__'.join(place).upper()}"
    twin = f"anchors: &{CANARY} {CANARY}\n{indented} *{CANARY}\n"
    outcomes = [try_all(twin.encode(), {}, folder)]
    for disguise in DISGUISES:
        outcomes.append(try_all(f"{indented} {disguise}\n".encode(), {}, folder))
        outcomes.append(try_all(b"mqtt: {port: x}", {variable: disguise}, folder))
    errors = [each for each in outcomes if isinstance(each, ConfigError)]
    assert len(errors) > len(DISGUISES)
    for error in errors:
        words = "".join(traceback.format_exception(error)) + repr(error)
        assert "Canary" not in words
        assert "s3cr3t" not in words


def test_only_listed_keys_show_their_value() -> None:
    """Only keys known to hold no secret show their value; each new key needs a decision."""
    everything = {key for model in MODELS for key in keys_of(model)}
    sections = {"accounts", "mqtt", "home_assistant", "web", "shard", "ranges", "tls"}
    shown = {name for model in MODELS for name, key in keys_of(model).items() if key.kind and key.kind.shown}
    assert everything - shown - sections == {
        *("username", "password", "account_id", "client_id", "host", "share_url", "name", "token")
    }
