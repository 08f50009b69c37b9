"""How a problem is described: where it is, what was found, what is allowed. Only this module decides what to show."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from dexcom2mqtt.config.lookalikes import find, oddity
from dexcom2mqtt.config.values import NOTHING, Written, safe

Place = tuple[str, ...]
"""The keys that lead to a value, such as ("mqtt", "host")."""


class ConfigError(Exception):
    """The configuration cannot be used; ``problems`` has a text for each reason, without secrets."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Problem(NamedTuple):
    """What is wrong at a place: with the value, with the key, or between the values below it."""

    place: Place
    found: object
    """The value that was written; None if there is none."""
    allowed: str
    """What is allowed. For a conflict: what is wrong and what to do."""
    about: Literal["value", "section", "key", "unknown", "conflict"] = "value"
    shown: bool = False
    """Whether the value may be shown because it cannot be a secret."""

    @property
    def stands_alone(self) -> bool:
        """Whether this is wrong whatever an unreadable source would add."""
        return self.about in {"unknown", "key"} or not isinstance(self.found, dict | list | None)

    @property
    def line(self) -> int | None:
        """The line of the value, or of what it is missing from; None if unknown."""
        if self.about == "conflict":
            return None
        found = None if self.about in {"key", "unknown"} else _first(self.found)
        written = [each for each in (*self.place, found) if isinstance(each, Written)]
        return written[-1].line if written else None

    def describe(self, where: str = "") -> str:
        """Return the problem as a text that ends with ``where``."""
        return f"{'.'.join(map(safe, self.place))}: {self._description()}{where}"

    def _description(self) -> str:
        missing = self.found in ("", None, {}) or self.found is NOTHING
        if self.about == "conflict" and not missing:
            return self.allowed
        if self.about == "section" and not missing:
            listed = isinstance(self.found, list)
            return f"found a list; expected {self.allowed}" if listed else f"expected {self.allowed} (value hidden)"
        return f"{self._found(missing=missing)} allowed: {self.allowed}"

    def _found(self, *, missing: bool) -> str:
        if self.about == "unknown":
            return f"unknown key;{self._suggestion()}{self._secret_file()}"
        if self.about == "key":
            return "invalid key;"
        if missing:
            return "missing or empty;"
        if isinstance(self.found, dict | list):
            return "found keys or a list;"
        found = f"found {str(self.found)[:60]!r}" if self.shown else _HIDDEN
        lookalike = find(str(self.found))
        return found + (f", containing {lookalike[1]};" if lookalike else ";")

    def _suggestion(self) -> str:
        import difflib  # noqa: PLC0415  # not for healthcheck, which loads this every minute

        close = difflib.get_close_matches(self.place[-1][:40].lower(), self.allowed.split(", "), 1)
        return f" did you mean {close[0]}?" if close else ""

    def _secret_file(self) -> str:
        """Say how secret files are found, to users who know …_FILE from other images."""
        *section, key = self.place
        known = key.lower().removesuffix("_file")
        if not key.lower().endswith("_file") or known not in self.allowed.split(", "):
            return ""
        name = "__".join(safe(part) for part in (*section, known))
        return f" secret files are found by name, /run/secrets/dexcom2mqtt_{name};"


def password_warning(place: Place, password: object, where: str) -> str:
    """Return the warning that a password was probably mangled, or an empty text; it is used as written."""
    if place[0] == "accounts" and (odd := oddity(str(password))):
        odd = f"{odd}. Unless that is correct, fix it now: a few wrong sign-ins lock the account"
    elif isinstance(password, Written) and password.comment:
        odd = 'is not in quotes, so everything after " #" is cut off: put the password in single quotes'
    else:
        return ""
    return f"{'.'.join(place)}: the password {odd}{where}"


_HIDDEN: Final = "found a value (hidden, as it may be a secret)"


def _first(found: object) -> object:
    """Return the first text in what was written."""
    while isinstance(found, dict | list) and found:
        found = next(iter(found))
    return found
