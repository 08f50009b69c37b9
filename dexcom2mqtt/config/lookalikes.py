"""Values mangled on their way into a configuration: spaces, quotes and dashes that only look like the real ones.

Wrong credentials lock accounts, so values that were probably mangled are reported before anything is sent. No message
quotes the value: it may be a password.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_NAMED: Final = {
    "\u00a0": "a no-break space",
    "\u202f": "a narrow no-break space",
    "\u200b": "a zero-width space",
    "\u200c": "a zero-width character",
    "\u200d": "a zero-width character",
    "\u2060": "a zero-width character",
    "\ufeff": "a byte order mark",
    "\u00ad": "a soft hyphen",
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "a dash that only looks like -"),
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a", "a typographic quote"),
}
_QUOTES: Final = "\"'\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a"
EXAMPLES: Final = frozenset({"USER NAME", "PASSWORD", "her password at Dexcom"})
"""Placeholders in config.example.yaml and the README."""


def find(text: str) -> tuple[int, str] | None:
    """Return the index and name of the first character that looks like another; None if there is none."""
    for index, character in enumerate(text):
        if name := _name(character):
            return index, name
    return None


def oddity(text: str) -> str | None:
    """Return what probably happened to a text on its way, such as "begins with a space"; None if nothing did."""
    first, last = _space(text[:1]), _space(text[-1:])
    found = {
        "is still the example's placeholder": text in EXAMPLES,
        "begins with !secret, which only Home Assistant understands": text.startswith("!secret"),
        "contains ${…}, which is not replaced here": re.search(r"\$\{[^}]*\}", text),
        f"begins with {first}": first,
        f"ends with {last}": last,
        "is in quotes, which are part of it here": len(text) > 1 and {text[0], text[-1]} <= set(_QUOTES),
    }
    return next((description for description, applies in found.items() if applies), None)


def _name(character: str) -> str | None:
    if name := _NAMED.get(character):
        return name
    if unicodedata.category(character) == "Zs" and character != " ":
        return "a space of unusual width"
    return "an invisible character" if unicodedata.category(character) == "Cf" else None


def _space(character: str) -> str | None:
    if not character or (character in _QUOTES and character in _NAMED):
        return None
    if character == " ":
        return "a space"
    return _name(character) if unicodedata.category(character) in {"Zs", "Cf"} else None
