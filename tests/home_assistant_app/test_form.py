"""The form of Home Assistant's app becomes the daemon's configuration, or a problem with the form's names."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import starter
from hypothesis import given
from hypothesis import strategies as some
from starter import form
from starter.form import Broker, FormError, key_of

from dexcom2mqtt.config import loading
from dexcom2mqtt.config.problems import ConfigError
from dexcom2mqtt.config.yaml_text import parse
from dexcom2mqtt.topics import ACCOUNT_KEY
from tests.test_architecture import imports

if TYPE_CHECKING:
    from collections.abc import Callable

    from dexcom2mqtt.config.settings import Settings

ANNA = {"name": "Anna", "username": "anna@example.com", "password": "correct horse", "region": "us", "unit": "mg/dL"}
MMOL = "in mg/dL even if the unit is mmol/L (multiply mmol/L by 18 and round)"
BEN = ANNA | {"name": "Ben", "username": "ben@example.com"}
MOSQUITTO = Broker("core-mosquitto", 1883, "addons", "secret of the broker")


def read(*accounts: dict[str, Any], **options: object) -> form.Form:
    return form.read(json.dumps({"accounts": accounts, **options}))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Settings]:
    """Read the configuration made from the form, as the daemon does."""

    def load(filled_in: form.Form, broker: Broker | None = MOSQUITTO) -> Settings:
        file = tmp_path / "config.yaml"
        file.write_text(filled_in.configuration(broker), encoding="utf-8")
        file.chmod(0o600)
        return loading.load(file, environ={}, secrets=())

    return load


def problems_of(*accounts: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(FormError) as raised:
        read(*accounts)
    return raised.value.problems


# --- the configuration -------------------------------------------------------------------------------------


def test_every_option_reaches_the_daemon(load: Callable[..., Settings]) -> None:
    """Each field of the form becomes a key of the configuration, and empty fields get their default."""
    anna = ANNA | {"low": 80, "high": 160, "key": "my_girl", "region": "ous", "unit": "mmol/L"}
    ben = BEN | {"key": "", "low": None}
    settings = load(read(anna, ben, stale_after=20, log_level="debug"))
    first, second = settings.accounts["my_girl"], settings.accounts["ben"]
    assert (first.name, first.region, first.unit) == ("Anna", "ous", "mmol/L")
    assert first.username
    assert first.username.get_secret_value() == "anna@example.com"
    assert first.password.get_secret_value() == "correct horse"
    assert (first.ranges.very_low, first.ranges.low, first.ranges.high, first.ranges.very_high) == (54, 80, 160, 250)
    assert (second.name, second.ranges.low, second.ranges.high) == ("Ben", 70, 180)
    assert (settings.stale_after, settings.log_level) == (20, "debug")


@pytest.mark.parametrize(
    ("filled_in", "broker", "expected"),
    [
        ({}, MOSQUITTO, ("core-mosquitto", 1883, "addons", "secret of the broker", False)),
        ({}, Broker("10.0.0.2", 8883, tls=True), ("10.0.0.2", 8883, None, None, True)),
        ({"host": "10.0.0.3"}, None, ("10.0.0.3", 1883, None, None, False)),
        (
            {"host": "10.0.0.3", "port": 1884, "username": "me", "password": "mine"},
            None,
            ("10.0.0.3", 1884, "me", "mine", False),
        ),
        ({"username": "me"}, MOSQUITTO, ("core-mosquitto", 1883, "me", None, False)),
        ({"username": "me", "password": "mine"}, MOSQUITTO, ("core-mosquitto", 1883, "me", "mine", False)),
        ({"host": "", "port": None}, MOSQUITTO, ("core-mosquitto", 1883, "addons", "secret of the broker", False)),
    ],
)
def test_filled_in_values_beat_the_supervisors_broker(
    filled_in: dict[str, object],
    broker: Broker | None,
    expected: tuple[object, ...],
    load: Callable[..., Settings],
) -> None:
    """A filled-in host is used alone, a filled-in user never gets another's password; the Supervisor gives the rest."""
    form = read(ANNA, mqtt=filled_in)
    assert form.names_a_broker is (broker is None)
    mqtt = load(form, broker).mqtt
    user, password = (each and each.get_secret_value() for each in (mqtt.username, mqtt.password))
    assert (mqtt.host, mqtt.port, user, password, mqtt.tls is not None) == expected


@given(some.text(min_size=1, max_size=30))
def test_every_text_arrives_as_it_was_filled_in(text: str) -> None:
    """The daemon gets any password unchanged."""
    written = read(ANNA | {"password": text}, mqtt={"host": "localhost"}).configuration(None)
    assert written.isascii()
    assert parse("config.yaml", written)["accounts"]["anna"]["password"] == text


def test_the_page_is_for_the_home_network_with_the_token(load: Callable[..., Settings]) -> None:
    """The daemon always listens in its container, because the port under Network leads there."""
    for filled_in, token in (({"web_token": "Geheim42"}, "Geheim42"), ({"web_token": ""}, None), ({}, None)):
        web = load(read(ANNA, **filled_in)).web
        assert web
        assert (web.host, web.port, web.token and web.token.get_secret_value()) == ("0.0.0.0", 8017, token)


# --- the key -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Anna", "anna"),
        ("Anna Marie", "anna_marie"),
        ("  Anna-Marie  2 ", "anna_marie_2"),
        ("Jörg", "jorg"),
        ("Zoë", "zoe"),
        ("Øyvind Strauß", "oyvind_strauss"),
        ("Łucja", "lucja"),
        ("IŞIL", "isil"),
        ("Ærø", "aero"),
        ("Anna's", "anna_s"),
        ("ANNA", "anna"),
    ],
)
def test_the_key_is_made_from_the_name(name: str, key: str) -> None:
    """Accents are removed, and other characters separate words: the daemon accepts the result as a key."""
    assert key_of({"name": name}) == key
    assert form.KEY.fullmatch(key)


def test_the_daemon_accepts_the_same_keys() -> None:
    """The pattern is the same as the daemon's."""
    assert form.KEY.pattern == ACCOUNT_KEY


@given(some.text(max_size=20))
def test_any_name_gives_a_usable_key_or_a_problem(name: str) -> None:
    """No name gives a key that the daemon would not accept."""
    entry = ANNA | {"name": name}
    if form.KEY.fullmatch(key_of(entry)):
        assert list(read(entry).accounts) == [key_of(entry)]
    else:
        assert ["lowercase letters and digits" in problem for problem in problems_of(entry)] == [True]


# --- problems ----------------------------------------------------------------------------------------------


def test_no_account_is_a_problem() -> None:
    """The problem of an empty form says what to add."""
    assert ["add one" in problem for problem in problems_of()] == [True]


def test_two_names_with_the_same_key_are_both_named() -> None:
    """The problem names both accounts, and says what to fill in."""
    (problem,) = problems_of(ANNA | {"name": "Zoë"}, BEN, ANNA | {"name": "ZOE", "username": "zoe"})
    assert problem.startswith('accounts, "ZOE": ')
    for piece in ("called zoe", 'accounts, "Zoë"', "another key for one of the two, such as zoe_2"):
        assert piece in problem
    assert list(read(ANNA, ANNA | {"key": "other"}).accounts) == ["anna", "other"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"name": "安娜"}, 'accounts, "安娜": no key can be made from this name; fill one in'),
        ({"name": "Bridge"}, 'accounts, "Bridge": no key can be made'),
        ({"name": ""}, "accounts, entry 1, name: lowercase letters and digits"),
        ({"key": "Anna Marie"}, 'accounts, "Anna", key: lowercase letters and digits'),
        ({"key": "bridge"}, 'accounts, "Anna", key: '),
        ({"low": 4}, f'accounts, "Anna", low: a whole number from 55 to 249, {MMOL}'),
        ({"high": 250}, 'accounts, "Anna", high: a whole number from 55 to 249'),
        ({"low": "70"}, 'accounts, "Anna", low: a whole number'),
        ({"low": 200}, 'accounts, "Anna": low (200) must be below high (180)'),
        ({"name": "A\nERROR forged", "low": 1}, 'accounts, "A?ERROR forged", low: '),
    ],
)
def test_a_problem_names_the_entry_and_its_field(changed: dict[str, object], expected: str) -> None:
    """A problem uses the form's names, says what is allowed, and is one line."""
    (problem,) = problems_of(ANNA | changed)
    assert problem.startswith(expected)
    assert problem.isprintable()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"accounts": [1]}', '{"accounts": 1}', '{"accounts": [], "mqtt": 1}'])
def test_malformed_options_are_a_problem(text: str) -> None:
    """Options that the Supervisor would never write cause no traceback."""
    with pytest.raises(FormError):
        form.read(text)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"username": "anna@example.com "}, 'accounts, "Anna", username: found a value (hidden'),
        ({"password": "PASSWORD"}, 'accounts, "Anna", password: found a value (hidden'),
        ({"region": "mars"}, "accounts, \"Anna\", region: found 'mars'; allowed: us, ous, jp"),
    ],
)
def test_the_daemons_problems_have_the_forms_names(
    changed: dict[str, str], expected: str, load: Callable[..., Settings]
) -> None:
    """The daemon's problems name the entry and its field, and not a file that the user has never seen."""
    filled_in = read(ANNA | changed)
    with pytest.raises(ConfigError) as raised:
        load(filled_in)
    (problem,) = raised.value.problems
    line = filled_in.reworded(problem)
    assert line
    assert line.startswith(expected)
    assert "config.yaml" not in line


def test_an_invalid_token_is_reported_by_the_forms_name(load: Callable[..., Settings]) -> None:
    """The value is not shown."""
    filled_in = read(ANNA, web_token="two words")
    with pytest.raises(ConfigError) as raised:
        load(filled_in)
    (problem,) = raised.value.problems
    line = filled_in.reworded(problem)
    assert line
    assert line.startswith("web_token: found a value (hidden, as it may be a secret); allowed: up to 128")
    assert "two words" not in line


def test_other_lines_of_the_daemon_are_unchanged() -> None:
    """Lines of the log that name nothing of the form stay unchanged."""
    for line in ("INFO    anna: 85 mg/dL →", "accounts.carla.region: x", "reads accountsXanna.y", ""):
        assert read(ANNA).reworded(line) == line


def test_the_supervisors_broker_causes_no_warning(load: Callable[..., Settings]) -> None:
    """Only a broker on another machine causes the warning about TLS, without its remedy, which the form lacks."""
    own = read(ANNA, mqtt={"host": "10.0.0.3"}, web_token="x")
    (warning,) = load(own).warnings
    assert own.reworded(warning) == warning.partition(";")[0]
    assert read(ANNA).reworded(load(read(ANNA)).warnings[0]) is None


def test_a_page_without_a_token_is_not_a_warning(load: Callable[..., Settings]) -> None:
    """Nobody can reach the port until it is opened, so the line is only information; it names web_token."""
    _, warning = load(read(ANNA)).warnings
    line = read(ANNA).reworded(f"2026-01-01 00:00:00,000 WARNING {warning}")
    assert line
    assert line.startswith("2026-01-01 00:00:00,000 INFO    web: if port 8017 is opened under Network, everybody")
    assert line.endswith("fill in web_token")
    assert "WARNING" not in line


def test_where_the_daemon_listens_is_not_logged() -> None:
    """The address is that of the container, so it would mislead; but an error in listening is logged."""
    assert read(ANNA).reworded("2026-01-01 00:00:00,000 INFO    web: listening at 0.0.0.0 port 8017") is None
    trouble = "2026-01-01 00:00:00,000 ERROR   web: cannot listen at 0.0.0.0 port 8017 (Address already in use)"
    assert read(ANNA).reworded(trouble) == trouble


# --- libraries ---------------------------------------------------------------------------------------------


def test_the_starter_uses_no_library() -> None:
    """The starter imports only Python's standard library."""
    modules = sorted(Path(starter.__file__).parent.glob("*.py"))
    assert len(modules) > 4
    for module in modules:
        used = {name.partition(".")[0] for name in imports(module.read_text(encoding="utf-8"))}
        assert used <= {*sys.stdlib_module_names, "starter"}, module.name
        assert ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))), module.name
