"""YAML in which everything is a text, and the words for what is not YAML: they quote nothing, it may be a password."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from dexcom2mqtt.config.mistakes import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_NODES = 50_000  # with every alias followed: a few lines of YAML can stand for billions


class _Refused(yaml.MarkedYAMLError):
    """Proper YAML, but nothing for a configuration."""

    def __init__(self, node: yaml.Node, problem: str) -> None:
        super().__init__(problem=problem, problem_mark=node.start_mark)


_INVISIBLE = "a character that cannot be seen; delete the line and type it anew"
_UNKNOWN = "not YAML; put values with special characters in quotes"
_CAUSES = {  # from a piece of PyYAML's words to ours: its own quote the file, and so perhaps a password
    r"character '\t'": "a tab; indent with spaces",
    "that cannot start any token": "a value that begins with @, % or ` must be in quotes",
    "alias": "a value that begins with * must be in quotes",
    "anchor": "a value that begins with & must be in quotes",
    "tag": "a value that begins with ! must be in quotes",
    "block scalar": "a value that begins with | or > must be in quotes",
    "escape": "within double quotes a backslash has a meaning of its own; use single quotes",
    "quoted scalar": "a quote is opened here and never closed",
    "parsing a flow": "a value that begins with [ or { must be in quotes; else its end or a comma is missing",
    "the node content": "a value that begins with a comma, ] or } must be in quotes",
    "mapping values": "a second colon; put the value in quotes, or mend the indentation here or one line above",
    "could not find expected ':'": "a key without a colon and a space after it",
    "not allowed here": "a value that begins with - or ? must be in quotes",
    "block end": "not indented like the lines above, or behind a closing quote",
    "document": "a second document; write everything into one, without the lines --- and ...",
}


def parse(name: str, text: str) -> Any:  # noqa: ANN401  # dict, list, text or None
    """Read YAML; raise ConfigError with line, column and cause, but without any piece of the text."""
    why: str | None
    mark: yaml.Mark | None
    try:
        loader = yaml.BaseLoader(text)
        root = loader.get_single_node()
        return None if root is None else _value(root, iter(range(_MAX_NODES)))
    except yaml.reader.ReaderError as error:
        before = text[: error.position].split("\n")
        why, mark = _INVISIBLE, yaml.Mark("", 0, len(before) - 1, len(before[-1]), None, 0)
    except _Refused as error:
        why, mark = error.problem, error.problem_mark
    except yaml.MarkedYAMLError as error:
        problem = f"{error.context} {error.problem}"
        why = next((ours for theirs, ours in _CAUSES.items() if theirs in problem), _UNKNOWN)
        # Where a quote or bracket was opened tells more than where the file ended.
        opened = problem.startswith(("while scanning", "while parsing a flow")) and error.context_mark
        mark = opened or error.problem_mark
    except (ValueError, OverflowError, RecursionError):  # what PyYAML does not foresee
        why, mark = _UNKNOWN, loader.get_mark()
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    raise ConfigError(f"{name}{where}: {why}")


def _value(node: yaml.Node, budget: Iterator[int]) -> Any:  # noqa: ANN401  # dict, list, text or None
    """Turn a node into what was written: all is text but an unquoted null, ~ or nothing at all."""
    if next(budget, None) is None:
        raise _Refused(node, "too many values; aliases (*) must not multiply them")
    if node.tag not in {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}:
        raise _Refused(node, _CAUSES["tag"])
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in {"", "~", "null"} else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, budget) for item in node.value]
    keys: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _value(key_node, budget)
        if not isinstance(key, str):
            raise _Refused(key_node, "a key that is not a word")
        if key in keys:
            raise _Refused(key_node, "this key is written a second time here")
        keys[key] = _value(value_node, budget)
    merged = keys.pop("<<", {})
    for base in merged if isinstance(merged, list) else [merged]:
        if not isinstance(base, dict):
            raise _Refused(node, "<<: takes a section, by its alias")
        keys = base | keys
    return keys
