"""Settings from what all sources say together."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from dexcom2mqtt.config import sources
from dexcom2mqtt.config.lookalikes import oddity
from dexcom2mqtt.config.problems import ConfigError, Problem
from dexcom2mqtt.config.settings import Section, Settings, is_section, is_switch, keys_of
from dexcom2mqtt.config.structure import structured
from dexcom2mqtt.config.values import Written

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from dexcom2mqtt.config.problems import Place

S = TypeVar("S", bound=Section)


def load(
    path: Path | None = None, *, environ: Mapping[str, str] = os.environ, secrets: Sequence[Path] | None = None
) -> Settings:
    """Read the configuration: environment beats secret files beat YAML, key by key.

    ``path`` is the file, which then must exist; else ``$DEXCOM2MQTT_CONFIG``, likewise; else the first of
    ``sources.DEFAULT_FILES`` that exists, or none. Of the folders ``secrets`` (by default Docker's, then systemd's) the
    later beats the earlier. Raises ConfigError with every problem that can be told.
    """
    file, found = sources.find(path, environ, secrets)
    layers, problems = sources.read_all((each for each in found if _is_ours(each.place)), is_section)
    tree = sources.merged(layers, is_switch)
    settings, wrong = structured(Settings, tree)
    if problems:  # what could not be read may say what is missing
        wrong = [each for each in wrong if each.stands_alone]
    elif not layers:
        first, second = sources.DEFAULT_FILES
        problems.append(f"no configuration: write {first} or {second}, or name it by --config")
    problems += sources.told(wrong, layers)
    if settings is None or problems:
        raise ConfigError(*problems)
    noticed = [*_odd_passwords(tree, layers)]
    # What systemd hands over is for the daemon alone; group bits in its mode stand for an access control list.
    if file and str(file.parent) != environ.get("CREDENTIALS_DIRECTORY"):
        noticed += filter(None, [sources.exposed(file, layers[-1], settings)])
    return replace(settings, noticed=tuple(noticed))


def build(section: type[S], given: Mapping[str, Any]) -> S:
    """Make settings, or a section of them, of texts, numbers and switches. Raises ConfigError with every problem."""
    made, wrong = structured(section, given)
    if made is None:
        raise ConfigError(*(each.told() for each in wrong))
    return made


def _odd_passwords(tree: Mapping[str, Any], layers: Sequence[sources.Layer]) -> Iterator[str]:
    """Warn of passwords that may have been mangled; a password may hold anything, so they are used as they are."""
    for key, account in tree["accounts"].items():
        password = account["password"]
        odd = oddity(password)
        if odd is None and isinstance(password, Written) and password.remark:
            odd = "is not in quotes, and ends where a remark begins with #"
        if odd:
            where = sources.where(Problem(("accounts", key, "password"), password, ""), layers)
            yield f"accounts.{key}.password: the password {odd}. It is used as it is; mend it if that is wrong{where}"


def _is_ours(place: Place) -> bool:
    """Tell whether a place begins with a known key. Container platforms add names like DEXCOM2MQTT_PORT_1883_TCP."""
    return not place or (place[0] in keys_of(Settings) and (len(place) == 1 or is_section(place[:1])))
