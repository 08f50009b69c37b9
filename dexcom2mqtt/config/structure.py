"""From keys and texts to settings, or to every mistake in them: marshmallow walks the tables of ``settings``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, pre_load, validates_schema

from dexcom2mqtt.config.mistakes import Mistake, Place
from dexcom2mqtt.config.settings import Section, keys_of
from dexcom2mqtt.config.values import ON_OR_SEVERAL, SEVERAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.config.settings import Key
    from dexcom2mqtt.config.values import Kind

S = TypeVar("S", bound=Section)

_UNKNOWN = "unknown"
_ON, _OFF = ("true", "yes", "on"), ("false", "no", "off")
_OF_ALL = "_schema"  # where marshmallow puts what is wrong with a whole section


def structured(section: type[S], given: Mapping[str, Any]) -> tuple[S | None, list[Mistake]]:
    """Make a section of what was written; return it, or every mistake, in the order of the keys."""
    try:
        made: S = _schema(section).load(given)
    except ValidationError as error:
        return None, [*_in_section(section, given, error.messages, ())]
    return made, []


class _Value(fields.Field[Any]):
    """One value, read by its kind."""

    def __init__(self, kind: Kind[Any], *, required: bool = False) -> None:
        words = _allowed(kind)
        super().__init__(required=required, error_messages={"required": words, "null": words})
        self._kind = kind

    def _deserialize(self, value: Any, *_: object, **__: object) -> Any:  # noqa: ANN401  # as marshmallow has it
        try:
            return self._kind.read(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None


class _Keys(Schema):
    """Keys that stand together: nothing at all is the default, none is unknown, and each must fit the others."""

    class Meta:
        """What marshmallow is to do: it knows no schema by its name, and takes no unknown key."""

        register = False
        unknown = RAISE

    section: ClassVar[type[Section]]

    @pre_load
    def _drop_nothing(self, given: Any, **_: object) -> Any:  # noqa: ANN401  # as marshmallow has it
        if not isinstance(given, Mapping):
            return given
        keys = keys_of(self.section)
        written = {
            name: _switched(value) if name in keys and keys[name].switch else value for name, value in given.items()
        }
        optional = {name for name, key in keys.items() if not key.required}
        return {name: value for name, value in written.items() if value is not None or name not in optional}

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _fit(self, right: Mapping[str, Any], given: object, **_: object) -> None:
        wrong: dict[object, list[str]] = {}
        for name, allowed in self.section.wrong(given, right) if isinstance(given, Mapping) else ():
            # A tuple is not what somebody writes; else it would be mixed with what is wrong below the key.
            wrong.setdefault((name,) if keys_of(self.section)[name].each else name, []).append(allowed)
        if wrong:
            raise ValidationError(wrong)

    @post_load
    def _make(self, right: dict[str, Any], **_: object) -> Section:
        return self.section(**right)


def _switched(given: object) -> object:
    """Return what true and false stand for, in place of a section."""
    if not isinstance(given, str):
        return given
    return {} if given.lower() in _ON else None if given.lower() in _OFF else given


def _allowed(kind: Kind[Any]) -> str:
    """Return what a kind says that it takes, in place of nothing."""
    try:
        kind.read(None)
    except ValueError as error:
        return str(error)
    return ""


def _schema(section: type[Section], allowed: str = SEVERAL) -> Schema:
    declared = {name: _field(key) for name, key in keys_of(section).items()}
    messages = {"type": allowed, "unknown": _UNKNOWN}
    made: Schema = type(section.__name__, (_Keys,), {"section": section, "error_messages": messages, **declared})()
    return made


def _field(key: Key) -> fields.Field[Any]:
    if key.kind:
        return _Value(key.kind, required=key.required)
    allowed = ON_OR_SEVERAL if key.switch else SEVERAL
    below = fields.Nested(_schema(key.section or Section, allowed), error_messages={"null": allowed})
    if key.each:
        return fields.Dict(keys=_Value(key.each), values=below, error_messages={"invalid": SEVERAL})
    return below


# What marshmallow found, in the order of the keys. It nests its words as the keys are nested.


def _in_section(section: type[Section], given: object, errors: Any, place: Place) -> Iterator[Mistake]:  # noqa: ANN401
    if not isinstance(errors, Mapping) or not isinstance(given, Mapping):
        yield from _here(given, errors, place)
        return
    keys = keys_of(section)
    for name in (*keys, *(name for name in given if name not in keys)):
        key, value, wrong = keys.get(name), given.get(name), errors.get(name, [])
        if key is None:
            yield Mistake((*place, name), value, ", ".join(keys), "unknown")
        elif key.each and key.section:
            yield from _in_each(key.section, value, wrong, (*place, name))
            yield from (Mistake((*place, name), value, words, "clash") for words in errors.get((name,), ()))
        elif key.section:
            yield from _in_section(key.section, value, wrong, (*place, name))
        else:
            found = key.default if value is None and not key.required else value
            yield from _here(found, wrong, (*place, name), shown=key.kind is not None and key.kind.shown)


def _in_each(section: type[Section], given: object, errors: Any, place: Place) -> Iterator[Mistake]:  # noqa: ANN401
    """Tell what is wrong with each of the keys of the user's choice, and with what is below it."""
    if not isinstance(errors, Mapping) or not isinstance(given, Mapping):
        yield from _here(given, errors, place)
        return
    for name, value in given.items():
        wrong = errors.get(name, {})
        yield from (Mistake((*place, name), value, words, "key") for words in wrong.get("key", ()))
        yield from _in_section(section, value, wrong.get("value", {}), (*place, name))


def _here(found: object, errors: Any, place: Place, *, shown: bool = False) -> Iterator[Mistake]:  # noqa: ANN401
    words = errors.get(_OF_ALL, []) if isinstance(errors, Mapping) else errors
    yield from (Mistake(place, found, allowed, shown=shown) for allowed in words)
