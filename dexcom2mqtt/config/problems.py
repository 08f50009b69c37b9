"""The words for a problem: where it is, what was found, what is allowed. What may be shown is decided here alone."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from dexcom2mqtt.config.lookalikes import find
from dexcom2mqtt.config.values import NOTHING, Written, safe

Place = tuple[str, ...]
"""The keys that lead to a value, such as ("mqtt", "host")."""


class ConfigError(Exception):
    """The configuration cannot be used; ``problems`` has a text for each reason, none of them a secret."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Problem(NamedTuple):
    """What is wrong at a place: with the value there, with the key itself, or between the values below it."""

    place: Place
    found: object
    """The value that was written there; None for nothing."""
    allowed: str
    about: Literal["value", "key", "unknown", "clash"] = "value"
    shown: bool = False
    """Whether the value may be shown, since it cannot be a secret."""

    @property
    def stands_alone(self) -> bool:
        """Whether this is wrong in itself, whatever another source would say that could not be read."""
        return self.about in {"unknown", "key"} or not isinstance(self.found, dict | list | None)

    @property
    def line(self) -> int | None:
        """Where it was written, or what it is missing from, as the line of its source; None if that is not known."""
        if self.about == "clash":
            return None
        found = None if self.about in {"key", "unknown"} else _first(self.found)
        written = [each for each in (*self.place, found) if isinstance(each, Written)]
        return written[-1].line if written else None

    def told(self, where: str = "") -> str:
        """Say it, and ``where`` it was written."""
        return f"{'.'.join(map(safe, self.place))}: {self._found()} allowed: {self.allowed}{where}"

    def _found(self) -> str:
        if self.about == "unknown":
            return f"unknown key;{self._meant()}{self._file()}"
        if self.about == "key":
            return "not usable as a key;"
        if self.found in ("", None, {}) or self.found is NOTHING:
            return "missing, or empty;"
        if isinstance(self.found, dict | list):
            return "found a clash;" if self.about == "clash" else "found keys or a list;"
        found = f"found {str(self.found)[:60]!r}" if self.shown else _HIDDEN
        strange = find(str(self.found))
        return found + (f", and {strange[1]} in it;" if strange else ";")

    def _meant(self) -> str:
        import difflib  # noqa: PLC0415  # not for healthcheck, which loads this every minute

        close = difflib.get_close_matches(self.place[-1][:40].lower(), self.allowed.split(", "), 1)
        return f" did you mean {close[0]}?" if close else ""

    def _file(self) -> str:
        """Say how a file is read, to somebody who knows …_FILE from other images."""
        *section, key = self.place
        known = key.lower().removesuffix("_file")
        if not key.lower().endswith("_file") or known not in self.allowed.split(", "):
            return ""
        name = "__".join(safe(part) for part in (*section, known))
        return f" a secret file is found by its name, /run/secrets/dexcom2mqtt_{name};"


_HIDDEN: Final = "found a value not shown here, as it may be a secret"


def _first(found: object) -> object:
    """Return the first text in what was written."""
    while isinstance(found, dict | list) and found:
        found = next(iter(found))
    return found
