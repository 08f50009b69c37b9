"""The form on the tab Configuration, and the daemon's configuration made from it.

The Supervisor has checked the form against the schema of the app. What a schema cannot express is checked here or by
the daemon, and reported with the names on the form.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KEY: Final = re.compile(r"(?!bridge$)[a-z0-9]+(_[a-z0-9]+)*")
"""What the daemon accepts as the key of an account."""
FROM: Final = 55
TO: Final = 249
"""mg/dL; the limits of very low and very high, which are not on the form, are just beyond these."""
WEB: Final = {"host": "0.0.0.0", "port": 8017}  # noqa: S104  # of the container only
"""Where the daemon serves the page for tablets and clocks. Until that port is opened, only other apps can reach it."""
_OPEN_WAY: Final = "the broker is on another machine and tls is not set"
_LISTENING: Final = "INFO    web: listening at "
_OPEN_PAGE: Final = re.compile(r"WARNING web: the page can be opened from other machines, .*")
_OPEN_PAGE_HERE: Final = (
    "INFO    web: if port 8017 is opened under Network, everybody in the home network can read the glucose there; to "
    "require a token, fill in web_token"
)
_DEFAULTS: Final = {"low": 70, "high": 180}

_UNDIVIDED: Final = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "ħ": "h", "\u0131": "i", "ł": "l", "þ": "th"}
)
"""Letters that Unicode does not decompose into a plain letter and an accent."""
_HARMLESS: Final = re.compile(r"[ !#-\[\]-~]")
"""Characters that need no escape between double quotes in YAML, and never break a line."""


class FormError(Exception):
    """The form cannot be used; ``problems`` has a text for each reason, without secrets."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Broker(NamedTuple):
    """A broker and its credentials, as the Supervisor reports them."""

    host: str
    port: int
    username: str = ""
    password: str = ""
    tls: bool = False

    @property
    def settings(self) -> dict[str, object]:
        """The keys of the daemon's configuration."""
        signing_in = {"username": self.username, "password": self.password}
        tls = {"tls": True} if self.tls else {}
        return {"host": self.host, "port": self.port} | _filled(signing_in) | tls

    def __str__(self) -> str:
        """Return its host and port, without secrets."""
        return f"{self.host} port {self.port}"


@dataclass(frozen=True)
class Form:
    """The filled-in form: each account by its key, without empty fields."""

    accounts: Mapping[str, Mapping[str, object]]
    mqtt: Mapping[str, object]
    web: Mapping[str, object]
    general: Mapping[str, object]

    @property
    def names_a_broker(self) -> bool:
        """Whether a broker is filled in, so that the Supervisor need not be asked."""
        return "host" in self.mqtt

    def configuration(self, broker: Broker | None) -> str:
        """Return the daemon's configuration as YAML; ``broker`` is the Supervisor's, if it was asked for one."""
        found = broker.settings if broker else {}
        if "username" in self.mqtt:  # the Supervisor's password belongs to another user name
            found.pop("password", None)
        accounts = {key: _account(entry) for key, entry in self.accounts.items()}
        return _yaml({"accounts": accounts, "mqtt": {**found, **self.mqtt}, "web": self.web, **self.general}) + "\n"

    def reworded(self, line: str) -> str | None:
        """Return a line of the daemon's output with the form's names in it, and without the place in its file.

        None for two lines that would mislead: that the connection to the Supervisor's broker is not encrypted, because
        it stays on this machine; and where the daemon listens, because that is within its container.
        """
        if _OPEN_WAY in line:
            return line.partition("; ")[0] if self.names_a_broker else None
        if _LISTENING in line:
            return None
        line = _OPEN_PAGE.sub(_OPEN_PAGE_HERE, line).replace("web.token", "web_token")
        line = re.sub(r" \([^()]*\.yaml, line \d+\)$", "", line)
        return re.sub(r"\baccounts\.(\w+)(?:\.ranges)?(\.?)", self._entry, line)

    def _entry(self, match: re.Match[str]) -> str:
        entry = self.accounts.get(match[1])
        return match[0] if entry is None else _place(entry) + (", " if match[2] else "")


def read(text: str) -> Form:
    """Read /data/options.json. Raises FormError with every problem."""
    try:
        options = json.loads(text)
        accounts = [_filled(entry) for entry in options.get("accounts") or []]
        mqtt = _filled(options.get("mqtt") or {})
    except (ValueError, TypeError, AttributeError):
        raise FormError("the saved options do not fit the form; save them again on the tab Configuration") from None
    problems = [*_problems(accounts)]
    if problems:
        raise FormError(*problems)
    general = {key: options[key] for key in ("stale_after", "log_level") if key in options}
    web = WEB | _filled({"token": options.get("web_token")})
    return Form({key_of(entry): entry for entry in accounts}, mqtt, web, _filled(general))


def key_of(entry: Mapping[str, object]) -> str:
    """Return the key of an account: the filled-in one, or one made of the letters and digits in its name."""
    if "key" in entry:
        return str(entry["key"])
    plain = unicodedata.normalize("NFKD", str(entry.get("name", "")).casefold().translate(_UNDIVIDED))
    letters = "".join(character for character in plain if not unicodedata.combining(character))
    return "_".join(re.findall("[a-z0-9]+", letters))


def _problems(accounts: list[dict[str, Any]]) -> Iterator[str]:
    if not accounts:
        yield "accounts: there is none yet; add one, with the user name and password of the person who wears the sensor"
    taken: dict[str, str] = {}
    for number, entry in enumerate(accounts, 1):
        key, place = key_of(entry), _place(entry, number)
        if not KEY.fullmatch(key):
            yield _unusable(place, entry)
        elif key in taken:
            yield (
                f"{place}: its topics and entities would be called {key}, like those of {taken[key]}; fill in another "
                f"key for one of the two, such as {key}_2"
            )
        taken[key] = place
        yield from _limits(place, entry)


def _unusable(place: str, entry: Mapping[str, object]) -> str:
    if "key" in entry or "name" not in entry:
        what = "key" if "key" in entry else "name"
        return f"{place}, {what}: lowercase letters and digits, separated by single _, such as anna_marie; not bridge"
    return (
        f"{place}: no key can be made from this name; fill one in: lowercase letters and digits, separated by "
        "single _, such as anna_marie; not bridge"
    )


def _limits(place: str, entry: Mapping[str, Any]) -> Iterator[str]:
    found = _DEFAULTS | {key: entry[key] for key in _DEFAULTS if key in entry}
    for key in _DEFAULTS:
        if not (isinstance(found[key], int) and FROM <= found[key] <= TO):
            yield (
                f"{place}, {key}: a whole number from {FROM} to {TO}, in mg/dL even if the unit is mmol/L (multiply "
                "mmol/L by 18 and round)"
            )
            return
    if found["low"] >= found["high"]:
        yield f"{place}: low ({found['low']}) must be below high ({found['high']})"


def _place(entry: Mapping[str, object], number: int = 0) -> str:
    """Name an account as on the form, without control characters: they could forge a line in the log."""
    name = "".join(character if character.isprintable() else "?" for character in str(entry.get("name", "")))
    return f'accounts, "{name[:60]}"' if name else f"accounts, entry {number}"


def _account(entry: Mapping[str, object]) -> dict[str, object]:
    ranges = {key: entry[key] for key in _DEFAULTS if key in entry}
    rest = {key: value for key, value in entry.items() if key not in {"key", *_DEFAULTS}}
    return rest | ({"ranges": ranges} if ranges else {})


def _filled(options: Mapping[str, object]) -> dict[str, object]:
    """Leave out empty fields: one that was filled in and emptied again remains as an empty text."""
    return {key: value for key, value in options.items() if value not in (None, "")}


def _yaml(value: object) -> str:
    """Return YAML in one line, with every text in quotes, so that no password is mistaken for something else."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_yaml(key)}: {_yaml(each)}" for key, each in value.items()) + "}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return '"' + "".join(each if _HARMLESS.fullmatch(each) else f"\\U{ord(each):08x}" for each in text) + '"'
