"""The client id that ``healthcheck`` asks for: the one that ``load`` gives, read from nothing but its own keys."""

from pathlib import Path

import pytest

from dexcom2mqtt.config.naming import client_id
from dexcom2mqtt.config.problems import ConfigError
from tests.support.configuration import ANNA, NOT_SHOWN, problems, read, secret

WRONG_INDEX = "less than 2, the value of shard.count, because it begins at 0"


def name(text: str, environ: dict[str, str] | None = None, *secrets: Path) -> str:
    file = Path("test.yaml")
    file.write_text(text)
    return client_id(file, environ=environ or {}, secrets=secrets)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "dexcom2mqtt"),
        ("mqtt: {base_topic: home/cgm}", "home_cgm"),
        ("mqtt:\nshard:\n", "dexcom2mqtt"),
        ("shard: {index: 0, count: 1}", "dexcom2mqtt"),
        ("shard: {count: 2}", "dexcom2mqtt-0"),
        ("shard: {count: 3, index: 2}\nmqtt: {client_id: me}", "me-2"),
        ("shard: {count: ~, index: 0}", "dexcom2mqtt"),
    ],
)
def test_the_client_id_is_that_of_the_daemon(text: str, expected: str) -> None:
    """It is the one with which the daemon connects, with the index if there are several."""
    assert name(text) == expected
    assert read(f"{ANNA}{text}").connection.client_id == expected


def test_the_index_comes_from_every_source(tmp_path: Path) -> None:
    """Environment beats secret files beat YAML, also for a whole section; accounts_dir and accounts do not matter."""
    text = "shard: {index: 1, count: 9}\naccounts_dir: /missing\naccounts: 5\n"
    file = secret(tmp_path, "shard__index", b"2\n")
    assert name(text) == "dexcom2mqtt-1"
    assert name(text, {}, file) == "dexcom2mqtt-2"
    assert name(text, {"DEXCOM2MQTT_SHARD__INDEX": "3"}, file) == "dexcom2mqtt-3"
    assert name("", {"DEXCOM2MQTT_SHARD": "{index: 4, count: 5}"}) == "dexcom2mqtt-4"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("shard: {index: 2, count: 2}", f"shard.index: found '2'; allowed: {WRONG_INDEX}"),
        ("shard: {index: x, count: 2}", "shard.index: found 'x'; allowed: a whole number from 0 to 999"),
        ("shard: {index: 5, count: 1001}", "shard.count: found '1001'; allowed: a whole number from 1 to 1000"),
        ("shard: [1]", "shard: found a list; expected a section with indented keys"),
        ("mqtt: {client_id: 'a#'}", f"mqtt.client_id: {NOT_SHOWN}; allowed: up to 128 characters, without + or #"),
        (
            "mqtt: {base_topic: /}",
            "mqtt.base_topic: found '/'; allowed: letters, digits, _ and -, in levels separated by /",
        ),
        ("mqtt: 5", "mqtt: expected a section with indented keys (value hidden)"),
    ],
)
def test_its_problems_are_those_of_the_configuration(text: str, problem: str) -> None:
    """The same words as everywhere, with the line."""
    with pytest.raises(ConfigError) as caught:
        name(text)
    assert caught.value.problems == (f"{problem} (test.yaml, line 1)",)
    assert problems(text + "\n" + ANNA) == (problem,)


def test_a_problem_in_a_variable_names_it() -> None:
    """An index that is too high for the count in the file is the variable's."""
    with pytest.raises(ConfigError) as caught:
        name("shard: {count: 2}", {"DEXCOM2MQTT_SHARD__INDEX": "2"})
    assert caught.value.problems == (
        f"shard.index: found '2'; allowed: {WRONG_INDEX} (from the environment variable DEXCOM2MQTT_SHARD__INDEX)",
    )
