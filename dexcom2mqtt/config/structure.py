"""From keys and texts to settings, or to every problem in them, guided by the tables of ``settings``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dexcom2mqtt.config.problems import Place, Problem
from dexcom2mqtt.config.settings import Section, keys_of
from dexcom2mqtt.config.values import SECTION, SWITCH_OR_SECTION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.config.settings import Key
    from dexcom2mqtt.config.values import Kind

S = TypeVar("S", bound=Section)

_ON, _OFF = ("true", "yes", "on"), ("false", "no", "off")


def structured(section: type[S], given: Mapping[str, Any], place: Place = ()) -> tuple[S | None, list[Problem]]:
    """Make the section at a place from what was written; return it, or every problem in the order of the keys."""
    made, problems = _section(section, given, place)
    return (None if problems else cast("S", made)), problems


def _section(
    section: type[Section], given: object, place: Place, allowed: str = SECTION
) -> tuple[Section | None, list[Problem]]:
    """Make a section: keys without a value get their default, unknown keys are problems, values must fit together."""
    if not isinstance(given, Mapping):
        return None, [Problem(place, given, allowed, "section")]
    valid: dict[str, Any] = {}
    invalid: dict[str, list[Problem]] = {}
    for name, key in keys_of(section).items():
        value = _switched(given.get(name)) if key.switch else given.get(name)
        if value is None and not key.required:
            continue
        made, problems = _value(key, value, (*place, name))
        if problems:
            invalid[name] = problems
        else:
            valid[name] = made
    for name, allowed_there in section.conflicts(given, valid):
        conflict = _conflict(keys_of(section)[name], given.get(name), (*place, name), allowed_there)
        invalid.setdefault(name, []).append(conflict)
    problems = [*_in_order(section, given, place, invalid)]
    return (None if problems else section(**valid)), problems


def _value(key: Key, value: object, place: Place) -> tuple[object, list[Problem]]:
    """Make the value of a key: a single value, a section, or a section below each key that the user chose."""
    section = key.section or Section
    if key.each:
        return _each(key.each, section, value, place)
    if key.kind is None:
        return _section(section, value, place, SWITCH_OR_SECTION if key.switch else SECTION)
    try:
        return key.kind.read(value), []
    except ValueError as error:
        return None, [Problem(place, value, str(error), shown=key.kind.shown)]


def _each(kind: Kind[str], section: type[Section], given: object, place: Place) -> tuple[object, list[Problem]]:
    if not isinstance(given, Mapping):
        return None, [Problem(place, given, SECTION, "section")]
    valid: dict[str, Section | None] = {}
    invalid: list[Problem] = []
    for name, value in given.items():
        made, problems = _section(section, value, (*place, name))
        try:
            valid[kind.read(name)] = made
        except ValueError as error:
            invalid.append(Problem((*place, name), value, str(error), "key"))
        invalid += problems
    return valid, invalid


def _conflict(key: Key, value: object, place: Place, allowed: str) -> Problem:
    """Return the problem of a value that does not fit the others; it may be a default."""
    if key.each:
        return Problem(place, value, allowed, "conflict")
    found = key.default if value is None and not key.required else value
    return Problem(place, found, allowed, shown=key.kind is not None and key.kind.shown)


def _in_order(
    section: type[Section], given: Mapping[str, Any], place: Place, invalid: Mapping[str, list[Problem]]
) -> Iterator[Problem]:
    keys = keys_of(section)
    for name in keys:
        yield from invalid.get(name, ())
    for name, value in given.items():
        if name not in keys:
            yield Problem((*place, name), value, ", ".join(keys), "unknown")


def _switched(given: object) -> object:
    """Return the section that true or false stands for."""
    if not isinstance(given, str):
        return given
    return {} if given.lower() in _ON else None if given.lower() in _OFF else given
