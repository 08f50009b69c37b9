"""The client id, which tells ``healthcheck`` one daemon from another.

Containers run ``healthcheck`` every minute, even on the smallest computers. This module therefore loads neither the
tables of all keys nor any library but the one for YAML.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from dexcom2mqtt.config import sources
from dexcom2mqtt.config.problems import ConfigError, Problem
from dexcom2mqtt.config.values import (
    BASE_TOPIC,
    CLIENT_ID,
    SECTION,
    SHARD_COUNT,
    SHARD_INDEX,
    TOPIC_NAME,
    client_id_of,
    shard_conflict,
    sharded,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dexcom2mqtt.config.values import Kind

_KEYS: Final[Mapping[str, Mapping[str, tuple[Kind[Any], Any]]]] = {
    "mqtt": {"base_topic": (TOPIC_NAME, BASE_TOPIC), "client_id": (CLIENT_ID, "")},
    "shard": {"index": (SHARD_INDEX, 0), "count": (SHARD_COUNT, 1)},
}
"""The keys that matter, each with its kind and default, by section."""
_SECTIONS: Final = ((), *((section,) for section in _KEYS))
_PLACES: Final = (*_SECTIONS, *((section, key) for section, keys in _KEYS.items() for key in keys))


def client_id(
    path: Path | None = None, *, environ: Mapping[str, str] = os.environ, secrets: Sequence[Path] | None = None
) -> str:
    """Read only what makes up the client id, from the sources that ``load`` reads; no secret. Raises ConfigError."""
    _, found = sources.find(path, environ, secrets)
    layers, problems = sources.read_all((each for each in found if each.place in _PLACES), _SECTIONS.__contains__)
    tree = sources.merged(layers)
    mqtt, wrong_mqtt = _read("mqtt", tree.get("mqtt"))
    shard, wrong_shard = _read("shard", tree.get("shard"))
    if not wrong_shard and (allowed := shard_conflict(**shard)):
        wrong_shard.append(
            Problem(("shard", "index"), (tree.get("shard") or {}).get("index", "0"), allowed, shown=True)
        )
    problems += sources.described([*wrong_mqtt, *wrong_shard], layers)
    if problems:
        raise ConfigError(*problems)
    return sharded(client_id_of(**mqtt), **shard)


def _read(section: str, written: Any) -> tuple[dict[str, Any], list[Problem]]:  # noqa: ANN401  # whatever is there
    """Return the values of a section, and what is wrong in it."""
    values = {key: default for key, (_, default) in _KEYS[section].items()}
    if not isinstance(written, dict | None):
        return values, [Problem((section,), written, SECTION, "section")]
    problems = []
    for key, (kind, _) in _KEYS[section].items():
        if (value := (written or {}).get(key)) is not None:
            try:
                values[key] = kind.read(value)
            except ValueError as error:
                problems.append(Problem((section, key), value, str(error), shown=kind.shown))
    return values, problems
