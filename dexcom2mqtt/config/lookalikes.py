"""What is easily mangled on its way into a configuration: blanks, quotes and dashes that are not what they look like.

Wrong credentials lock accounts, so what was most likely mangled is told before anybody is asked. No message
quotes what was written: it may be a password.
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
"""What stands in config.example.yaml and in the README, for the reader to replace."""


def find(text: str) -> tuple[int, str] | None:
    """Return where the first character is that looks like another, and what it is; None if there is none."""
    for index, character in enumerate(text):
        if name := _name(character):
            return index, name
    return None


def oddity(text: str) -> str | None:
    """Return what most likely happened to a text on its way, as in "begins with a blank"; None for nothing."""
    first, last = _blank(text[:1]), _blank(text[-1:])
    found = {
        "is still the one of the example": text in EXAMPLES,
        "begins with !secret, which only Home Assistant knows": text.startswith("!secret"),
        "has ${…} in it, which nothing replaces here": re.search(r"\$\{[^}]*\}", text),
        f"begins with {first}": first,
        f"ends with {last}": last,
        "is in quotes, which are a part of it here": len(text) > 1 and {text[0], text[-1]} <= set(_QUOTES),
    }
    return next((words for words, holds in found.items() if holds), None)


def _name(character: str) -> str | None:
    if name := _NAMED.get(character):
        return name
    if unicodedata.category(character) == "Zs" and character != " ":
        return "a blank of an unusual width"
    return "a character that cannot be seen" if unicodedata.category(character) == "Cf" else None


def _blank(character: str) -> str | None:
    if not character or (character in _QUOTES and character in _NAMED):
        return None
    if character == " ":
        return "a blank"
    return _name(character) if unicodedata.category(character) in {"Zs", "Cf"} else None
