"""Values mangled on their way into the configuration: they are reported, and never silently sent to Share."""

import json
from pathlib import Path

import pytest

from dexcom2mqtt.config.lookalikes import oddity
from tests.support.configuration import ACCOUNT_KEYS, ANNA, NOT_SHOWN, anna, problems, problems_with_lines, read, secret

EXAMPLE = Path(__file__).parent.parent.parent / "config.example.yaml"
NBSP, ZERO, DASH = "\u00a0", "\u200b", "\u2011"
ODD = [
    (" anna", "begins with a space"),
    ("anna ", "ends with a space"),
    (f"{NBSP}anna", "begins with a no-break space"),
    (f"anna{ZERO}", "ends with a zero-width space"),
    ("anna\u3000", "ends with a space of unusual width"),
    ("anna\u200e", "ends with an invisible character"),
    ('"anna"', "is in quotes, which are part of it here"),
    ("'anna'", "is in quotes, which are part of it here"),
    ("\u201eanna\u201c", "is in quotes, which are part of it here"),
    ("!secret dexcom_user", "begins with !secret, which only Home Assistant understands"),
    ("${DEXCOM_USER}", "contains ${…}, which is not replaced here"),
    ("USER NAME", "is still the example's placeholder"),
]
FINE = ["anna", "anna's", '"', "O'Neil", "a b", "an\u00e4", "$HOME", "!important", "+11234567890", "", "user name"]


@pytest.mark.parametrize(("text", "words"), ODD)
def test_a_user_name_that_was_mangled_is_a_problem(text: str, words: str) -> None:
    """It is not sent anywhere; the message says what happened to it and where, but does not show it."""
    written = f"accounts:\n  anna:\n    password: p\n    username: {json.dumps(text)}\n"
    (only,) = problems_with_lines(written)
    seen = ", containing a" if ord(max(text)) > 0x7F else "; allowed"
    assert only.startswith(f"accounts.anna.username: {NOT_SHOWN}{seen}")
    assert only.endswith(f"; allowed: only the user name; this one {words} (test.yaml, line 4)")
    environ = {"DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME": text}
    (only,) = problems(ANNA, environ)
    assert only.endswith(f"{words} (from the environment variable DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME)")


@pytest.mark.parametrize(("text", "words"), ODD[:-1])
def test_a_password_that_may_have_been_mangled_earns_a_warning(text: str, words: str) -> None:
    """A password may contain anything, so it is used as written; the warning does not show it."""
    got = read(f"accounts:\n  anna:\n    username: a\n    password: {json.dumps(text)}\n")
    assert got.accounts["anna"].password.get_secret_value() == text
    remedy = "Unless that is correct, fix it now: a few wrong sign-ins lock the account"
    warning = f"accounts.anna.password: the password {words}. {remedy}"
    assert got.warnings == (f"{warning} (test.yaml, line 4)",)
    (warning,) = read(ANNA, {"DEXCOM2MQTT_ACCOUNTS__ANNA__PASSWORD": text}).warnings
    assert warning.endswith("(from the environment variable DEXCOM2MQTT_ACCOUNTS__ANNA__PASSWORD)")


@pytest.mark.parametrize("password", ["PASSWORD", "her password at Dexcom"])
def test_a_password_of_the_examples_is_a_problem(password: str, tmp_path: Path) -> None:
    """A placeholder that was not replaced is reported, whatever its source."""
    words = "allowed: the real password; this is still the example's placeholder"
    (only,) = problems(f"accounts: {{anna: {{username: a, password: {password}}}}}")
    assert only == f"accounts.anna.password: {NOT_SHOWN}; {words}"
    (only,) = problems(ANNA, {}, secret(tmp_path, "accounts__anna__password", f"{password}\n".encode()))
    assert words in only


@pytest.mark.parametrize("text", FINE)
def test_ordinary_values_are_not_odd(text: str) -> None:
    """Quotes, spaces and dollars in the middle are fine."""
    assert oddity(text) is None


@pytest.mark.parametrize(
    ("password", "comment", "warned"),
    [("abc", "def", True), ("'abc'", "def", False), ('"abc"', "def", False), ("abc", "", False)],
)
def test_a_comment_that_may_be_part_of_the_password(password: str, comment: str, *, warned: bool) -> None:
    """A # after a space begins a comment unless there are quotes, and would cut either password short."""
    line = f"    password: {password} {f'#{comment}' if comment else ''}\n"
    got = read(f"accounts:\n  anna:\n    username: a\n{line}mqtt:\n    username: u # of the daemon\n{line}")
    assert got.mqtt.password is not None
    assert got.accounts["anna"].password.get_secret_value() == got.mqtt.password.get_secret_value() == "abc"
    words = 'the password is not in quotes, so everything after " #" is cut off: put the password in single quotes'
    lines = {"accounts.anna": 4, "mqtt": 7}
    warnings = tuple(f"{place}.password: {words} (test.yaml, line {at})" for place, at in lines.items())
    assert got.warnings == (warnings if warned else ())


def test_the_example_unchanged_is_a_problem() -> None:
    """Its problems name the lines to change."""
    lines = EXAMPLE.read_text(encoding="utf-8").split("\n")
    got = problems_with_lines(EXAMPLE.read_bytes())
    expected = [1 + lines.index(line) for line in ("    username: 'USER NAME'", "    password: 'PASSWORD'")]
    assert [each.partition(":")[0] for each in got] == ["accounts.anna.username", "accounts.anna.password"]
    assert [int(each.rpartition("line ")[2][:-1]) for each in got] == expected


# --- lines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("accounts:\n  anna:\n    username: a\n    password: p\n    region: eu", 5),
        ("accounts:\n  anna:\n    username: a\n    password: p\n    regoin: us", 5),
        ("accounts:\n  Anna:\n    username: a\n    password: p", 2),
        ("\n\naccounts:\n  anna:\n    username: a", 4),
        ("accounts: {anna: {username: a, password: p}}\n\nmqtt:\n  port: x", 4),
        ("accounts: {anna: {username: a, password: p}}\nmqtt:\n\n  port: [x]", 4),
    ],
)
def test_a_problem_has_its_line(text: str, line: int) -> None:
    """The line is that of the wrong value, or of the account that lacks something."""
    (only,) = problems_with_lines(text)
    assert only.endswith(f" (test.yaml, line {line})")


# --- keys, indentation, values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "column", "why"),
    [
        (f"accounts:\n{NBSP}{NBSP}anna:\n", 2, 1, "a no-break space in this key"),
        (f"accounts:\n  anna:\n    user{ZERO}name: a\n", 3, 9, "a zero-width space in this key"),
        (f"accounts:\n  an{DASH}na:\n", 2, 5, "a dash that only looks like - in this key"),
        (f"accounts:\n  anna:\n    username: a\n   {NBSP}password: p\n", 4, 4, "a no-break space"),
        ("accounts:\n  anna:\n    region \u2013 us\n    unit: x\n", 3, 12, "a dash that only looks like -"),
        (
            "accounts:\n  anna:\n    username: !secret x",
            3,
            15,
            "!secret works only in Home Assistant; write the value itself",
        ),
    ],
)
def test_characters_that_only_look_like_yaml(text: str, line: int, column: int, why: str) -> None:
    """A space or dash copied from a web page is named with its line and column."""
    (only,) = problems_with_lines(text)
    assert only.startswith(f"test.yaml, line {line}, column {column}: {why}")


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (f"region: us{NBSP}", f"region: found {f'us{NBSP}'!r}, containing a no-break space; allowed: us"),
        (
            f"account_id: 0a1b2c3d{DASH}4e5f",
            f"account_id: {NOT_SHOWN}, containing a dash that only looks like -; allowed",
        ),
    ],
)
def test_a_value_with_a_character_that_looks_like_another(keys: str, found: str) -> None:
    """If a value is not allowed, its lookalike character is named."""
    got = problems(
        f"accounts:\n  anna:\n    {json.dumps(keys.partition(': ')[0])}: {json.dumps(keys.partition(': ')[2])}\n"
    )
    assert [each for each in got if each.startswith(f"accounts.anna.{found}")]


def test_typographic_quotes_in_a_password_stay() -> None:
    """They are part of it, as the warning says."""
    assert (
        anna("accounts: {anna: {username: a, password: \u201cp\u201d}}").password.get_secret_value() == "\u201cp\u201d"
    )


# --- switches and files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["mqtt:\n  tls:\n", "mqtt: {tls: }", "mqtt:\n  host: a\n  tls:   # on\n"])
def test_tls_without_a_value_is_a_problem(text: str) -> None:
    """It could mean on or off; null and ~ are off."""
    (only,) = problems(ANNA + text)
    assert only == "mqtt.tls: missing or empty; allowed: true, null, or a section with indented keys"
    assert read(ANNA + text, {"DEXCOM2MQTT_MQTT__TLS": "true"}).mqtt.tls is not None
    assert read(ANNA + text, {"DEXCOM2MQTT_MQTT__TLS": "null"}).mqtt.tls is None


def test_tls_keys_and_true_from_different_sources() -> None:
    """A key of the section beats true in a weaker source."""
    tls = read(f"{ANNA}mqtt: {{tls: true}}", {"DEXCOM2MQTT_MQTT__TLS__VERIFY": "false"}).mqtt.tls
    assert tls is not None
    assert tls.verify is False


def test_a_secret_file_is_not_named_by_a_variable() -> None:
    """Users who know …_FILE from other images learn how a file is found here."""
    name = "DEXCOM2MQTT_ACCOUNTS__ANNA__PASSWORD_FILE"
    (only,) = problems(ANNA, {name: "/run/secrets/CANARY"})
    assert only == (
        "accounts.anna.password_file: unknown key; did you mean password? secret files are found by name, "
        f"/run/secrets/dexcom2mqtt_accounts__anna__password; allowed: {ACCOUNT_KEYS} "
        f"(from the environment variable {name})"
    )
