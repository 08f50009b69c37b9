"""The words for a mistake: where it is, what was found, what is allowed. What may be shown is decided here alone."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dexcom2mqtt.config.settings import Place, key_at, keys_of, section_at
from dexcom2mqtt.config.values import safe

if TYPE_CHECKING:
    from collections.abc import Sequence


class ConfigError(Exception):
    """The configuration cannot be used; ``mistakes`` has a text for each reason, none of them a secret."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong at a place: with the value there, with the key itself, or between the values below it."""

    place: Place
    found: object
    """The value that was written there; None for nothing."""
    allowed: str = ""
    about: Literal["value", "key", "unknown", "clash"] = "value"

    @property
    def stands_alone(self) -> bool:
        """Whether this is wrong in itself, whatever another source would say that could not be read."""
        return self.about in {"unknown", "key"} or not isinstance(self.found, dict | list | None)

    def told(self, origins: Sequence[str]) -> str:
        """Say it; ``origins`` names each source that says something about the place, the strongest first."""
        words = self._unknown() if self.about == "unknown" else f"{self._found()}; allowed: {self.allowed}"
        between = (
            self.place == ("accounts",) and len(origins) > 1
        )  # what is wrong between accounts has no single origin
        return f"{'.'.join(map(safe, self.place))}: {words}{'' if between or not origins else origins[0]}"

    def _unknown(self) -> str:
        section = section_at(self.place[:-1])
        allowed = [*keys_of(section)] if section else []
        meant = [f" did you mean {key}?" for key in difflib.get_close_matches(self.place[-1][:40].lower(), allowed, 1)]
        return f"unknown key;{''.join(meant)} allowed: {', '.join(allowed)}"

    def _found(self) -> str:
        key = key_at(self.place)
        if self.about == "key":
            return "not usable as a key"
        if self.found in ("", None, {}):
            return "missing, or empty"
        if isinstance(self.found, dict | list):
            return "found a clash" if self.about == "clash" else "found keys or a list"
        if key and key.kind and key.kind.shown:
            return f"found {str(self.found)[:60]!r}"
        return "found a value not shown here, as it may be a secret"
