"""YAML in which every value is a text. Errors quote nothing from the file, which may be a password."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import yaml

from dexcom2mqtt.config.lookalikes import find
from dexcom2mqtt.config.problems import ConfigError
from dexcom2mqtt.config.values import NOTHING, Written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MAX_NODES = 50_000  # with every alias followed: a few lines of YAML can stand for billions


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that a configuration cannot use; ``index`` is the position in the node's text."""

    def __init__(self, node: yaml.Node, problem: str, index: int = 0) -> None:
        mark = copy.copy(node.start_mark)
        mark.column += index
        super().__init__(problem=problem, problem_mark=mark)


_INVISIBLE = "an invisible character; delete the line and retype it"
_LOOKALIKE = "{}; delete it and retype it"
_HOME_ASSISTANTS = (
    "!secret works only in Home Assistant; write the value itself, or use the environment or a secret file"
)
_UNKNOWN = "not valid YAML; put values with special characters in quotes"
_CAUSES = {  # from part of PyYAML's message to ours: its own quote the file, and so perhaps a password
    r"character '\t'": "a tab; indent with spaces",
    "that cannot start any token": "a value that begins with @, % or ` must be in quotes",
    "alias": "a value that begins with * must be in quotes",
    "anchor": "a value that begins with & must be in quotes",
    "tag": "a value that begins with ! must be in quotes",
    "block scalar": "a value that begins with | or > must be in quotes",
    "escape": "a backslash is special within double quotes; use single quotes",
    "quoted scalar": "a quote is opened here and never closed",
    "parsing a flow": "a value that begins with [ or { must be in quotes; otherwise its end or a comma is missing",
    "the node content": "a value that begins with a comma, ] or } must be in quotes",
    "mapping values": "a second colon; put the value in quotes, or fix the indentation here or one line above",
    "could not find expected ':'": "a key without a colon and a space after it",
    "not allowed here": "a value that begins with - or ? must be in quotes",
    "block end": "not indented like the lines above, or text after a closing quote",
    "document": "a second document; put everything into one, without the lines --- and ...",
}


def parse(name: str, text: str) -> Any:  # noqa: ANN401  # dict, list, Written, None or NOTHING
    """Read YAML. Raises ConfigError with line, column and cause, but without any part of the text."""
    why: str | None
    mark: yaml.Mark | None
    try:
        loader = yaml.BaseLoader(text)
        root = loader.get_single_node()
        return None if root is None else _value(root, text.split("\n"), iter(range(_MAX_NODES)))
    except yaml.reader.ReaderError as error:
        before = text[: error.position].split("\n")
        why, mark = _INVISIBLE, yaml.Mark("", 0, len(before) - 1, len(before[-1]), None, 0)
    except _Refused as error:
        why, mark = error.problem, error.problem_mark
    except yaml.MarkedYAMLError as error:
        problem = f"{error.context} {error.problem}"
        why = next((ours for theirs, ours in _CAUSES.items() if theirs in problem), _UNKNOWN)
        # The place where a quote or bracket was opened is more useful than the end of the file.
        opened = problem.startswith(("while scanning", "while parsing a flow")) and error.context_mark
        mark = opened or error.problem_mark
        why, mark = _find_lookalike(text, mark) or (why, mark)
    except (ValueError, OverflowError, RecursionError):  # which PyYAML does not catch
        why, mark = _UNKNOWN, loader.get_mark()
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    raise ConfigError(f"{name}{where}: {why}")


def _find_lookalike(text: str, mark: yaml.Mark | None) -> tuple[str, yaml.Mark] | None:
    """Look for a character that only looks like another, in the broken line or the one above."""
    lines = text.split("\n")
    for number in (mark.line, mark.line - 1) if mark else ():
        if 0 <= number < len(lines) and (found := find(lines[number])):
            return _LOOKALIKE.format(found[1]), yaml.Mark("", 0, number, found[0], None, 0)
    return None


def _value(node: yaml.Node, lines: Sequence[str], budget: Iterator[int]) -> Any:  # noqa: ANN401  # see parse
    """Return what a node holds: all text, except an unquoted null, ~ or nothing at all."""
    if next(budget, None) is None:
        raise _Refused(node, "too many values; aliases (*) must not multiply them")
    if node.tag not in {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}:
        raise _Refused(node, _HOME_ASSISTANTS if node.tag == "!secret" else _CAUSES["tag"])
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, lines, budget) for item in node.value]
    return _section(node, lines, budget)


def _section(node: yaml.Node, lines: Sequence[str], budget: Iterator[int]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _value(key_node, lines, budget)
        if not isinstance(key, str):
            raise _Refused(key_node, "a key that is not a word")
        if lookalike := find(key):
            raise _Refused(key_node, _LOOKALIKE.format(f"{lookalike[1]} in this key"), lookalike[0])
        if key in keys:
            raise _Refused(key_node, "this key appears a second time here")
        keys[key] = _value(value_node, lines, budget)
    merged = keys.pop("<<", {})
    for base in merged if isinstance(merged, list) else [merged]:
        if not isinstance(base, dict):
            raise _Refused(node, "<<: needs the alias of a section")
        keys = base | keys
    return keys


def _scalar(node: yaml.ScalarNode, lines: Sequence[str]) -> object:
    if node.style is None and node.value in {"", "~", "null"}:
        return None if node.value else NOTHING
    rest = lines[node.end_mark.line][node.end_mark.column :] if node.end_mark.line < len(lines) else ""
    return Written(node.value, node.start_mark.line + 1, comment=node.style is None and rest.lstrip().startswith("#"))
