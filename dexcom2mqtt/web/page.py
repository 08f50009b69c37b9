"""The page: one file, and the policy by which a browser runs only what is in it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Final, NamedTuple

_FILE: Final = Path(__file__).with_name("page.html")


class Page(NamedTuple):
    """The page as it is sent."""

    html: bytes
    policy: str
    """Its Content-Security-Policy."""


def load() -> Page:
    """Read the page. Raises OSError."""
    text = _FILE.read_text(encoding="utf-8")
    script, style = (_hash_of(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    return Page(text.encode(), policy)


def _hash_of(text: str, tag: str) -> str:
    """Return the hash of the only element with that tag, as the policy wants it."""
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}"
