"""Settings from all sources together."""

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

    The file is ``path`` or ``$DEXCOM2MQTT_CONFIG``, which must exist if given, or the first of
    ``sources.DEFAULT_FILES`` that exists, or none. Later folders of ``secrets`` beat earlier ones (by default Docker's,
    then systemd's). Raises ConfigError with every problem found.
    """
    file, found = sources.find(path, environ, secrets)
    layers, problems = sources.read_all((each for each in found if _is_ours(each.place)), is_section)
    tree = sources.merged(layers, is_switch)
    settings, found_in_values = structured(Settings, tree)
    if problems:  # an unreadable source may hold what is missing
        found_in_values = [each for each in found_in_values if each.stands_alone]
    elif not layers:
        first, second = sources.DEFAULT_FILES
        problems.append(f"no configuration: write {first} or {second}, or name one with --config")
    problems += sources.described(found_in_values, layers)
    if settings is None or problems:
        raise ConfigError(*problems)
    warnings = [*_odd_passwords(tree, layers)]
    # Only the daemon can read what systemd hands over; group bits in its mode stand for an access control list.
    if file and str(file.parent) != environ.get("CREDENTIALS_DIRECTORY"):
        warnings += filter(None, [sources.exposed(file, layers[-1], settings)])
    return replace(settings, source_warnings=tuple(warnings))


def build(section: type[S], given: Mapping[str, Any]) -> S:
    """Make settings, or a section, from texts, numbers and switches. Raises ConfigError with every problem."""
    made, problems = structured(section, given)
    if made is None:
        raise ConfigError(*(each.describe() for each in problems))
    return made


def _odd_passwords(tree: Mapping[str, Any], layers: Sequence[sources.Layer]) -> Iterator[str]:
    """Warn of passwords that may have been mangled; a password may contain anything, so it is used as written."""
    passwords: dict[Place, Any] = {
        ("accounts", key, "password"): account["password"] for key, account in tree["accounts"].items()
    }
    passwords["mqtt", "password"] = (tree.get("mqtt") or {}).get("password")
    for place, password in passwords.items():
        if place[0] == "accounts" and (odd := oddity(password)):
            odd = f"{odd}. Unless that is correct, fix it now: a few wrong sign-ins lock the account"
        elif isinstance(password, Written) and password.comment:
            odd = 'is not in quotes, so everything after " #" is cut off: put the password in single quotes'
        else:
            continue
        yield f"{'.'.join(place)}: the password {odd}{sources.where(Problem(place, password, ''), layers)}"


def _is_ours(place: Place) -> bool:
    """Return whether a place begins with a known key. Container platforms add names like DEXCOM2MQTT_PORT_1883_TCP."""
    return not place or (place[0] in keys_of(Settings) and (len(place) == 1 or is_section(place[:1])))
