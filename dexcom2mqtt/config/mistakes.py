"""The words for a mistake: where it is, what was found, what is allowed. What may be shown is decided here alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from dexcom2mqtt.config.values import safe

if TYPE_CHECKING:
    from collections.abc import Sequence

Place = tuple[str, ...]
"""The keys that lead to a value, such as ("mqtt", "host")."""


class ConfigError(Exception):
    """The configuration cannot be used; ``mistakes`` has a text for each reason, none of them a secret."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class Mistake(NamedTuple):
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

    def told(self, origins: Sequence[str]) -> str:
        """Say it; ``origins`` names each source that says something about the place, the strongest first."""
        between = self.place == ("accounts",) and len(origins) > 1  # such a mistake has no single origin
        origin = "" if between or not origins else origins[0]
        return f"{'.'.join(map(safe, self.place))}: {self._found()} allowed: {self.allowed}{origin}"

    def _found(self) -> str:
        if self.about == "unknown":
            return f"unknown key;{self._meant()}"
        if self.about == "key":
            return "not usable as a key;"
        if self.found in ("", None, {}):
            return "missing, or empty;"
        if isinstance(self.found, dict | list):
            return "found a clash;" if self.about == "clash" else "found keys or a list;"
        if not self.shown:
            return "found a value not shown here, as it may be a secret;"
        return f"found {str(self.found)[:60]!r};"

    def _meant(self) -> str:
        import difflib  # noqa: PLC0415  # not for healthcheck, which loads this every minute

        close = difflib.get_close_matches(self.place[-1][:40].lower(), self.allowed.split(", "), 1)
        return f" did you mean {close[0]}?" if close else ""
