"""The tables of keys in `docs/configuration.md`: generated from the schema and the text of the problems.

The rest of the page is written by hand. The generated part is between its two marks:

    pytest tests/documents/test_docs.py                          fails if the page differs
    pytest tests/documents/test_docs.py --write-configuration    writes that part of the page again
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from dexcom2mqtt.config.editors import schema
from dexcom2mqtt.config.loading import load
from dexcom2mqtt.config.problems import ConfigError
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE: Final = ROOT / "docs" / "configuration.md"
BEGIN: Final = "<!-- made from the schema; see tests/support/configuration_page.py -->\n"
END: Final = "<!-- end of what is made from the schema -->\n"

_SECTIONS: Final = {
    (
        "accounts",
        "anna",
    ): "One for each person. `anna` is a key of your choice: lowercase letters, digits and single `_`. It "
    "becomes part of topics and of Home Assistant's entities, so choose it once and keep it.",
    ("accounts", "anna", "ranges"): "The limits of low and high. They must ascend.",
    ("mqtt",): "The broker.",
    (
        "mqtt",
        "tls",
    ): "Encryption of the connection to the broker. `tls: true` is enough if its certificate comes from a "
    "well-known authority. Any certificate in `ca_file` is trusted: a root, an intermediate, or the broker's "
    "own. The files are read again for each connection, so renewing them needs no restart "
    "([how to make and renew them](security.md#a-certificate-for-the-broker)).",
    ("home_assistant",): "How Home Assistant finds the accounts.",
    (
        "web",
    ): "The page and the API for Nightscout clients ([page.md](page.md)). Off unless configured; `web: true` turns it "
    "on with these defaults.",
    (
        "shard",
    ): "Only for several processes that share one configuration, such as thousands of accounts need. Families never "
    "need it.",
    (): "These four keys are at the top level, not indented.",
}
_NOTHING_FITS: Final = "\x01"


def made(folder: Path) -> str:
    """Make the tables; the folder gets a configuration with problems."""
    tree = json.loads(schema())
    parts = []
    names = []
    for place, words in _SECTIONS.items():
        title = f"### `{'.'.join(place)}`" if place else "### The rest"
        parts += [title, "", words, "", "| key | type | what it is | allowed | default |", "|---|---|---|---|---|"]
        for key, node in _leaves(tree, place):
            what, default = _described(node)
            allowed = _allowed((*place, key), folder)
            parts.append(f"| `{key}` | {_type(node)} | {what} | {allowed} | {default} |")
            path = "__".join((*place, key))
            names.append(f"| `{'.'.join((*place, key))}` | `DEXCOM2MQTT_{path.upper()}` | `dexcom2mqtt_{path}` |")
        parts.append("")
    parts += [
        "### Names in the environment, and of secret files",
        "",
        "| key | environment variable | secret file |",
        "|---|---|---|",
        *names,
        "",
    ]
    return "\n".join(parts) + "\n"


def between(page: str) -> tuple[str, str, str]:
    """Split the page: before, between and after the marks."""
    before, _, rest = page.partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before + BEGIN, inside, END + after


def _leaves(tree: dict[str, Any], place: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key of a section that holds a single value, and its node in the schema."""
    section = tree
    for key in place:
        node = section.get("properties", {}).get(key) or next(iter(section.get("patternProperties", {}).values()))
        section = _resolved(tree, node)
    for key, node in section["properties"].items():
        if (inner := _resolved(tree, node)).get("type") != "object":
            yield key, {**inner, **node}


def _resolved(tree: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Return what a node means: itself, what it refers to, or its only option besides null."""
    for option in (node, *node.get("anyOf", ())):
        if "$ref" in option:
            found: dict[str, Any] = tree["$defs"][option["$ref"].rpartition("/")[2]]
            return found
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    return options[0] if options else node


def _type(node: dict[str, Any]) -> str:
    """Name the type in words; to an editor a text may look like a number, so it has several types there."""
    if "enum" in node:
        return "choice"
    if node.get("format") in {"path", "directory-path"}:
        return "file" if node["format"] == "path" else "folder"
    return {"integer": "whole number", "boolean": "switch"}.get(str(node["type"]), "text")


def _described(node: dict[str, Any]) -> tuple[str, str]:
    """Return the description of a key, and its default as a user would write it."""
    what, _, words = node["description"].partition("; default: ")
    if words:
        return what, words
    default = node.get("default", "")
    return what, "must be given" if default == "" else "none" if default is None else f"`{_written(default)}`"


def _written(default: object) -> str:
    return json.dumps(default) if isinstance(default, bool | int) else str(default)


def _allowed(place: tuple[str, ...], folder: Path) -> str:
    """Return what is allowed at that place, according to its problem."""
    nested: object = _NOTHING_FITS
    for key in reversed(place):
        nested = {key: nested}
    file = folder / "invalid.yaml"
    file.write_text(json.dumps(nested), encoding="utf-8")
    try:
        load(file, environ={}, secrets=())
    except ConfigError as error:
        start = f"{'.'.join(place)}: "
        (problem,) = [problem for problem in error.problems if problem.startswith(start)]
        return problem.partition("allowed: ")[2].partition(f" ({file}, line ")[0]
    raise AssertionError(f"{place} allows anything")
