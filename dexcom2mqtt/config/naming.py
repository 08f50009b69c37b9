"""The client id, which tells ``healthcheck`` one daemon from another.

Containers run ``healthcheck`` every minute, even on the smallest computers. This module therefore loads neither the
tables of all keys nor any library but the one for YAML.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from dexcom2mqtt.config import sources
from dexcom2mqtt.config.problems import ConfigError, Problem
from dexcom2mqtt.config.values import BASE_TOPIC, CLIENT_ID, SECTION, TOPIC_NAME, client_id_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_SECTIONS: Final = ((), ("mqtt",))
_KINDS: Final = {"base_topic": TOPIC_NAME, "client_id": CLIENT_ID}
_PLACES: Final = (*_SECTIONS, *(("mqtt", key) for key in _KINDS))


def client_id(
    path: Path | None = None, *, environ: Mapping[str, str] = os.environ, secrets: Sequence[Path] | None = None
) -> str:
    """Read only ``mqtt.client_id``, from the sources that ``load`` reads; no secret. Raises ConfigError."""
    _, found = sources.find(path, environ, secrets)
    layers, problems = sources.read_all((each for each in found if each.place in _PLACES), _SECTIONS.__contains__)
    mqtt: Any = sources.merged(layers).get("mqtt")
    invalid = [] if isinstance(mqtt, dict | None) else [Problem(("mqtt",), mqtt, SECTION, "section")]
    named = {"base_topic": BASE_TOPIC, "client_id": ""}
    for key, kind in _KINDS.items() if isinstance(mqtt, dict) else ():
        written = mqtt.get(key)
        try:
            named[key] = named[key] if written is None else kind.read(written)
        except ValueError as error:
            invalid.append(Problem(("mqtt", key), written, str(error), shown=kind.shown))
    problems += sources.described(invalid, layers)
    if problems:
        raise ConfigError(*problems)
    return client_id_of(**named)
