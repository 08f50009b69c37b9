"""What tells one daemon from another: the client id, for ``healthcheck``.

Containers ask for it every minute, even on the smallest computers. So this loads neither the tables of all keys nor any
library except the one for YAML.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from dexcom2mqtt.config import sources
from dexcom2mqtt.config.problems import ConfigError, Problem
from dexcom2mqtt.config.values import BASE_TOPIC, CLIENT_ID, SEVERAL, TOPIC_NAME, client_id_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_SECTIONS: Final = ((), ("mqtt",))
_KINDS: Final = {"base_topic": TOPIC_NAME, "client_id": CLIENT_ID}
_PLACES: Final = (*_SECTIONS, *(("mqtt", key) for key in _KINDS))


def client_id(
    path: Path | None = None, *, environ: Mapping[str, str] = os.environ, secrets: Sequence[Path] | None = None
) -> str:
    """Read ``mqtt.client_id`` from where ``load`` does, but no secret and nothing else. Raises ConfigError."""
    _, found = sources.find(path, environ, secrets)
    layers, problems = sources.read_all((each for each in found if each.place in _PLACES), _SECTIONS.__contains__)
    mqtt: Any = sources.merged(layers).get("mqtt")
    wrong = [] if isinstance(mqtt, dict | None) else [Problem(("mqtt",), mqtt, SEVERAL)]
    named = {"base_topic": BASE_TOPIC, "client_id": ""}
    for key, kind in _KINDS.items() if isinstance(mqtt, dict) else ():
        written = mqtt.get(key)
        try:
            named[key] = named[key] if written is None else kind.read(written)
        except ValueError as error:
            wrong.append(Problem(("mqtt", key), written, str(error), shown=kind.shown))
    problems += sources.told(wrong, layers)
    if problems:
        raise ConfigError(*problems)
    return client_id_of(**named)
