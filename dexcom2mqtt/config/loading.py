"""Settings from what all sources say together.

``healthcheck`` needs one name of them, every minute and on the smallest computers. So the library that builds settings
is imported only when they are built.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dexcom2mqtt.config import sources
from dexcom2mqtt.config.mistakes import ConfigError, Mistake
from dexcom2mqtt.config.settings import Mqtt, Section, Settings, keys_of
from dexcom2mqtt.config.values import SEVERAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

S = TypeVar("S", bound=Section)

_NAMING: Final = ("base_topic", "client_id")
"""The keys of the section mqtt that tell one daemon from another."""


def load(
    path: Path | None = None, *, environ: Mapping[str, str] = os.environ, secrets: Sequence[Path] | None = None
) -> Settings:
    """Read the configuration: environment beats secret files beat YAML, key by key.

    ``path`` is the file, which then must exist; else ``$DEXCOM2MQTT_CONFIG``, likewise; else the first of
    ``sources.DEFAULT_FILES`` that exists, or none. Of the folders ``secrets`` (by default Docker's, then systemd's) the
    later beats the earlier. Raises ConfigError with every mistake that can be told.
    """
    file, found = sources.find(path, environ, secrets)
    layers, mistakes = sources.read_all(found)
    settings, wrong = _structured(Settings, sources.merged(layers))
    if mistakes:  # what could not be read may say what is missing
        wrong = [each for each in wrong if each.stands_alone]
    elif not layers:
        first, second = sources.DEFAULT_FILES
        mistakes.append(f"no configuration: write {first} or {second}, or name it by --config")
    mistakes += [_told(each, layers) for each in wrong]
    if settings is None or mistakes:
        raise ConfigError(*mistakes)
    # What systemd hands over is for the daemon alone; group bits in its mode stand for an access control list.
    if file and str(file.parent) != environ.get("CREDENTIALS_DIRECTORY"):
        return replace(settings, exposed=sources.exposed(file, layers[-1], settings))
    return settings


def build(section: type[S], given: Mapping[str, Any]) -> S:
    """Make settings, or a section of them, of texts, numbers and switches. Raises ConfigError with every mistake."""
    made, wrong = _structured(section, given)
    if made is None:
        raise ConfigError(*(each.told([""]) for each in wrong))
    return made


def client_id(
    path: Path | None = None, *, environ: Mapping[str, str] = os.environ, secrets: Sequence[Path] | None = None
) -> str:
    """Read ``mqtt.client_id`` from where ``load`` does, but no secret and nothing else. Raises ConfigError."""
    _, found = sources.find(path, environ, secrets)
    layers, mistakes = sources.read_all(
        source for source in found if source[1][:1] in {(), ("mqtt",)} and {*source[1][1:]} <= {*_NAMING}
    )
    mqtt = sources.merged(layers).get("mqtt")
    wrong = [] if isinstance(mqtt, dict | None) else [Mistake(("mqtt",), mqtt, SEVERAL)]
    named: dict[str, Any] = {}
    for name in _NAMING:
        kind, written = keys_of(Mqtt)[name].kind, mqtt.get(name) if isinstance(mqtt, dict) else None
        if kind is None or written is None:
            continue
        try:
            named[name] = kind.read(written)
        except ValueError as error:
            wrong.append(Mistake(("mqtt", name), written, str(error)))
    mistakes += [_told(each, layers) for each in wrong]
    if mistakes:
        raise ConfigError(*mistakes)
    return Mqtt(**named).client_id


def _structured(section: type[S], given: Mapping[str, Any]) -> tuple[S | None, list[Mistake]]:
    from dexcom2mqtt.config.structure import structured  # noqa: PLC0415  # see above

    return structured(section, given)


def _told(mistake: Mistake, layers: Sequence[sources.Layer]) -> str:
    return mistake.told([layer.origin for layer in layers if layer.at(mistake.place) is not None])
