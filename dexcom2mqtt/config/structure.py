"""From keys and texts to settings, or to every problem in them, by the tables of ``settings``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dexcom2mqtt.config.problems import Place, Problem
from dexcom2mqtt.config.settings import Section, keys_of
from dexcom2mqtt.config.values import ON_OR_SEVERAL, SEVERAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.config.settings import Key
    from dexcom2mqtt.config.values import Kind

S = TypeVar("S", bound=Section)

_ON, _OFF = ("true", "yes", "on"), ("false", "no", "off")


def structured(section: type[S], given: Mapping[str, Any]) -> tuple[S | None, list[Problem]]:
    """Make a section of what was written; return it, or every problem, in the order of the keys."""
    made, wrong = _section(section, given, ())
    return (None if wrong else cast("S", made)), wrong


def _section(
    section: type[Section], given: object, place: Place, allowed: str = SEVERAL
) -> tuple[Section | None, list[Problem]]:
    """Make a section: a key without a value has its default, none is unknown, and each must fit the others."""
    if not isinstance(given, Mapping):
        return None, [Problem(place, given, allowed)]
    right: dict[str, Any] = {}
    wrong: dict[str, list[Problem]] = {}
    for name, key in keys_of(section).items():
        value = _switched(given.get(name)) if key.switch else given.get(name)
        if value is None and not key.required:
            continue
        made, problems = _value(key, value, (*place, name))
        if problems:
            wrong[name] = problems
        else:
            right[name] = made
    for name, words in section.wrong(given, right):
        wrong.setdefault(name, []).append(_clash(keys_of(section)[name], given.get(name), (*place, name), words))
    problems = [*_in_order(section, given, place, wrong)]
    return (None if problems else section(**right)), problems


def _value(key: Key, value: object, place: Place) -> tuple[object, list[Problem]]:
    """Make what stands behind a key: a value, a section, or a section below each key of the user's choice."""
    section = key.section or Section
    if key.each:
        return _each(key.each, section, value, place)
    if key.kind is None:
        return _section(section, value, place, ON_OR_SEVERAL if key.switch else SEVERAL)
    try:
        return key.kind.read(value), []
    except ValueError as error:
        return None, [Problem(place, value, str(error), shown=key.kind.shown)]


def _each(kind: Kind[str], section: type[Section], given: object, place: Place) -> tuple[object, list[Problem]]:
    if not isinstance(given, Mapping):
        return None, [Problem(place, given, SEVERAL)]
    right: dict[str, Section | None] = {}
    wrong: list[Problem] = []
    for name, value in given.items():
        made, problems = _section(section, value, (*place, name))
        try:
            right[kind.read(name)] = made
        except ValueError as error:
            wrong.append(Problem((*place, name), value, str(error), "key"))
        wrong += problems
    return right, wrong


def _clash(key: Key, value: object, place: Place, words: str) -> Problem:
    """Say that a value does not fit the others; it may be a default."""
    if key.each:
        return Problem(place, value, words, "clash")
    found = key.default if value is None and not key.required else value
    return Problem(place, found, words, shown=key.kind is not None and key.kind.shown)


def _in_order(
    section: type[Section], given: Mapping[str, Any], place: Place, wrong: Mapping[str, list[Problem]]
) -> Iterator[Problem]:
    keys = keys_of(section)
    for name in keys:
        yield from wrong.get(name, ())
    for name, value in given.items():
        if name not in keys:
            yield Problem((*place, name), value, ", ".join(keys), "unknown")


def _switched(given: object) -> object:
    """Return what true and false stand for, in place of a section."""
    if not isinstance(given, str):
        return given
    return {} if given.lower() in _ON else None if given.lower() in _OFF else given
