"""The schema of the configuration for editors, and the example with every key."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dexcom2mqtt.config.editors import schema
from dexcom2mqtt.config.settings import Tls, Web, keys_of
from tests.support.configuration import ANNA, SECTIONS, dumped, read

EXAMPLE = Path(__file__).parent.parent.parent / "config.example.yaml"


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
    expected = {(*place, key) for place, model in SECTIONS.items() for key in keys_of(model)}
    assert places.keys() == {".".join(each).replace("anna", "*") for each in expected} | {"accounts.*"}
    assert [place for place, node in places.items() if place != "accounts.*" and not node.get("description")] == []
    (pattern,) = tree["properties"]["accounts"]["anyOf"][0]["patternProperties"]
    assert [bool(re.search(pattern, key)) for key in ("anna_2", "bridge", "bridges", "A", "a__b")] == [1, 0, 1, 0, 0]


def types_of(node: dict[str, Any]) -> list[str]:
    """Return the types that a key's value may have, according to the schema."""
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
        ("web.token", ["string", "number", "boolean", "null"]),
        ("mqtt.tls.verify", ["boolean", "null"]),
        ("accounts.*.region", ["string", "null"]),
        ("mqtt.tls.ca_file", ["string", "null"]),
    ],
)
def test_the_schema_allows_every_valid_value(place: str, types: list[str]) -> None:
    """To an editor an unquoted text may look like a number; a key with a default may be empty."""
    tree = json.loads(schema())
    assert types_of(dict(properties_of(tree, tree))[place]) == types


def test_the_schema_knows_limits_and_choices() -> None:
    """The schema has the limits of numbers and lists choices, also 5 as a number."""
    tree = json.loads(schema())
    places = dict(properties_of(tree, tree))
    stale_after, protocol = places["stale_after"]["anyOf"][0], places["mqtt.protocol"]["anyOf"][0]
    assert (stale_after["minimum"], stale_after["maximum"], stale_after["default"]) == (10, 60, 15)
    assert protocol["enum"] == ["auto", 5, "5", "3.1.1"]


def example_with_everything_on() -> dict[str, Any]:
    """Read the example as an editor does, with all commented-out keys switched on."""
    tree = yaml.safe_load(re.sub(r"(?m)^( *)#( *[a-z_]+:)", r"\1\2", EXAMPLE.read_text()))
    assert isinstance(tree, dict)
    return tree


def test_the_example_is_valid() -> None:
    """The example is valid once the capitals are replaced."""
    text = EXAMPLE.read_text(encoding="utf-8").replace("USER NAME", "anna@example.com").replace("'PASSWORD'", "'pw'")
    assert read(text).accounts == read(ANNA).accounts


def test_the_example_names_every_key() -> None:
    """The example has every key, and no others."""

    def places(node: object, place: str = "") -> Iterator[str]:
        for key, child in node.items() if isinstance(node, dict) else ():
            yield f"{place}{key}"
            yield from places(child, f"{place}{key}.")

    tree = json.loads(schema())
    shown = {each.replace("accounts.anna", "accounts.*") for each in places(example_with_everything_on())}
    assert shown == {place for place, _ in properties_of(tree, tree)}


def test_the_example_shows_the_defaults() -> None:
    """Every value in the example, except the account's own, is the default."""
    shown = example_with_everything_on()
    default = dumped(read(ANNA))
    default["mqtt"]["tls"] = dumped(Tls())
    default["web"] = dumped(Web())
    for tree in (shown, default):
        for key in ("username", "password", "account_id"):
            del tree["accounts"]["anna"][key]
    assert shown == default
