"""The configuration as a JSON Schema for editors, made from the tables of ``settings``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dexcom2mqtt.config.settings import Section, Settings, keys_of
from dexcom2mqtt.topics import ACCOUNT_KEY

if TYPE_CHECKING:
    from dexcom2mqtt.config.settings import Key


def schema() -> str:
    """Return the JSON Schema (2020-12) of the file. It requires no key, since each may come from another source."""
    tree = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "dexcom2mqtt", **_object(Settings)}
    return json.dumps(tree, indent=2)


def _object(section: type[Section]) -> dict[str, Any]:
    properties = {name: _property(key) for name, key in keys_of(section).items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _property(key: Key) -> dict[str, Any]:
    value = dict(key.kind.schema) if key.kind else _object(key.section) if key.section else {}
    if key.each:
        value = {"type": "object", "patternProperties": {f"^{ACCOUNT_KEY}$": value}, "additionalProperties": False}
    if key.required:
        return {"description": key.description, **value}
    switch = [{"type": "boolean"}] if key.switch else []
    either = {"description": key.description, "anyOf": [value, *switch, {"type": "null"}]}
    if key.default is None:
        return either | {"default": None}
    if key.kind and "; default: " not in key.description:  # otherwise it depends on other keys
        value["default"] = key.default
    return either
