"""What `docs/configuration.md` says of the keys: made from the schema, and from the words of the problems.

The page itself is written by hand. Between its two marks stands what is made here:

    pytest tests/documents/test_docs.py                          fails where the page differs
    pytest tests/documents/test_docs.py --write-configuration    makes that part of the page anew
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
    ): "One for each person. `anna` is a key of your choice: small letters, digits and single `_`. It "
    "becomes part of topics and of Home Assistant's entities, so choose it once and keep it.",
    ("accounts", "anna", "ranges"): "Where low and high begin. They have to ascend.",
    ("mqtt",): "The broker.",
    (
        "mqtt",
        "tls",
    ): "Encryption of the connection to the broker. `tls: true` is enough where its certificate comes from a "
    "well-known authority. What `ca_file` names is trusted as it is, be it a root, one in between, or the broker's own "
    "certificate. The files are read anew for each connection, so that renewing them needs no restart "
    "([how to make and renew them](security.md#a-certificate-for-the-broker)).",
    ("home_assistant",): "Home Assistant finds the accounts by itself.",
    (
        "web",
    ): "The page, and what Nightscout's clients read ([page.md](page.md)). Off unless it is there; `web: true` is on "
    "with these defaults.",
    (): "These three stand by themselves, not indented.",
}
_NOTHING_FITS: Final = "\x01"


def made(folder: Path) -> str:
    """Make the tables; a configuration with a problem is put into the folder."""
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
    """Part the page: what is before, between and after the marks."""
    before, _, rest = page.partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before + BEGIN, inside, END + after


def _leaves(tree: dict[str, Any], place: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key of a section that has a value of its own, and its node in the schema."""
    section = tree
    for key in place:
        node = section.get("properties", {}).get(key) or next(iter(section.get("patternProperties", {}).values()))
        section = _resolved(tree, node)
    for key, node in section["properties"].items():
        if (inner := _resolved(tree, node)).get("type") != "object":
            yield key, {**inner, **node}


def _resolved(tree: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Return what a node stands for: itself, what it refers to, or the one thing it is besides null."""
    for option in (node, *node.get("anyOf", ())):
        if "$ref" in option:
            found: dict[str, Any] = tree["$defs"][option["$ref"].rpartition("/")[2]]
            return found
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    return options[0] if options else node


def _type(node: dict[str, Any]) -> str:
    """Name the type in words; a text may look like a number to an editor, and is one of several types there."""
    if "enum" in node:
        return "choice"
    if node.get("format") == "path":
        return "file"
    return {"integer": "whole number", "boolean": "switch"}.get(str(node["type"]), "text")


def _described(node: dict[str, Any]) -> tuple[str, str]:
    """Return what a key is, and its default as it would be written."""
    what, _, words = node["description"].partition("; default: ")
    if words:
        return what, words
    default = node.get("default", "")
    return what, "must be given" if default == "" else "none" if default is None else f"`{_written(default)}`"


def _written(default: object) -> str:
    return json.dumps(default) if isinstance(default, bool | int) else str(default)


def _allowed(place: tuple[str, ...], folder: Path) -> str:
    """Return what a problem at that place says is allowed."""
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
