"""Kinds of values: how each is read, how to say what is allowed, and its JSON Schema.

Every value arrives as the text that was written, so that a password 0123 stays 0123; only its kind makes it a number or
a switch. The ValueError of a kind completes the sentence "allowed: …" and contains nothing that was written.

There are no dataclasses here: ``healthcheck`` loads this every minute, and the dataclasses module loads slowly.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, Self, TypeVar, get_args
from urllib.parse import urlsplit

from dexcom2mqtt.config.lookalikes import EXAMPLES, oddity
from dexcom2mqtt.topics import ACCOUNT_KEY, TOPIC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

Region = Literal["us", "ous", "jp"]
Unit = Literal["mg/dL", "mmol/L"]
Protocol = Literal["auto", "5", "3.1.1"]
LogLevel = Literal["debug", "info", "warning", "error"]
Statistics = Literal["90d", "24h", "off"]

SECTION: Final = "a section with indented keys"
"""What is allowed for a section."""
SWITCH_OR_SECTION: Final = "true, null, or a section with indented keys"
"""What is allowed for a section that can be switched on as a whole."""
_SINGLE: Final = "text in quotes"


class Secret:
    """A text that logs and tracebacks do not show by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def get_secret_value(self) -> str:
        """Return the text."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret('**********')"


class Written(str):
    """A text that knows where it was written."""

    __slots__ = ("comment", "line")

    line: int
    """Counted from 1."""
    comment: bool
    """Whether it was unquoted and a comment follows on its line, which may have been meant as part of it."""

    def __new__(cls, text: str, line: int, *, comment: bool = False) -> Self:
        """Make the text."""
        self = super().__new__(cls, text)
        self.line, self.comment = line, comment
        return self


class Nothing:
    """A key with no value at all, which may be a problem; null and ~ are deliberate."""


NOTHING: Final = Nothing()


class Kind(NamedTuple, Generic[T]):
    """A kind of value. ``read`` makes the value, or raises ValueError with what is allowed."""

    read: Callable[[object], T]
    schema: Mapping[str, Any]
    """JSON Schema. To an editor an unquoted 0123 is a number, so a text may be one."""
    shown: bool = False
    """Whether a problem may show what was written, because it cannot be a secret."""


def _text(allowed: str = "", pattern: str = ".+", longest: int = 256, *, shown: bool = False) -> Kind[str]:
    """Make a kind for one line of text that fully matches the pattern; ``allowed`` says so in words."""
    allowed = allowed or f"1 to {longest} characters in quotes, without tabs or line breaks"

    def read(given: object) -> str:
        if not isinstance(given, str):
            raise ValueError(_SINGLE)  # noqa: TRY004  # wrong is what the user wrote, not our call
        # Control characters could forge a line in a log; lone surrogates cannot be sent anywhere.
        clean = not any(unicodedata.category(character) in {"Cc", "Cs"} for character in given)
        if not (clean and len(given) <= longest and re.fullmatch(pattern, given)):
            raise ValueError(allowed)
        return str(given)

    return Kind(read, {"type": ["string", "number", "boolean"]}, shown)


def _secret(text: Kind[str]) -> Kind[Secret]:
    return Kind(lambda given: Secret(text.read(given)), text.schema)


def _read_user(given: object) -> Secret:
    name = TEXT.read(given)
    if odd := oddity(name):
        raise ValueError(f"only the user name; this one {odd}")
    return Secret(name)


def _read_password(given: object) -> Secret:
    password = TEXT.read(given)
    if password in EXAMPLES:
        raise ValueError("the real password; this is still the example's placeholder")
    return Secret(password)


def _whole(lowest: int, highest: int, empty: int | None = None) -> Kind[int]:
    """Make a kind for a number in plain digits: 1_000, 15.0 and 1e3 are ambiguous."""

    def read(given: object) -> int:
        if given == "" and empty is not None:
            return empty
        if not re.fullmatch("[0-9]{1,6}", str(given)) or not lowest <= int(str(given)) <= highest:
            raise ValueError(f"a whole number from {lowest} to {highest}")
        return int(str(given))

    return Kind(read, {"type": "integer", "minimum": lowest, "maximum": highest}, shown=True)


def _choice(*choices: str, also: tuple[object, ...] = ()) -> Kind[str]:
    """Make a kind for one of a few words; editors accept those in ``also`` as well."""

    def read(given: object) -> str:
        if given not in choices:
            hint = [f"; write {choice}" for choice in choices if choice.lower() == str(given).lower()]
            raise ValueError(", ".join(choices) + "".join(hint))
        return str(given)

    typed: dict[str, Any] = {} if also else {"type": "string"}
    return Kind(read, {"enum": [*choices[:1], *also, *choices[1:]], **typed}, shown=True)


def _read_switch(given: object) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if (word := str(given).lower()) not in words:
        raise ValueError("true or false")
    return words[word]


def _read_address(given: object) -> str:
    url = _URL_TEXT.read(given)
    try:
        usable = urlsplit(url).hostname and (urlsplit(url).port or 1)
    except ValueError:  # such as a port beyond 65535
        usable = None
    if not usable:
        raise ValueError("https://…, or http:// on localhost, with a valid host and port")
    return url.rstrip("/")


def _path(allowed: str, access: int, right_kind: Callable[[str], bool]) -> Callable[[object], Path]:
    """Make a reader for the path of something that exists and can be used."""

    def read(given: object) -> Path:
        if not isinstance(given, str):
            raise ValueError(_SINGLE)  # noqa: TRY004  # wrong is what the user wrote, not our call
        try:
            usable = os.access(given, access) and right_kind(given)
        except ValueError:  # such as a NUL in it
            usable = False
        if not usable:
            raise ValueError(allowed)
        return Path(given)

    return read


LOCAL: Final = r"localhost|127(\.[0-9]{1,3}){3}"
"""The host names and addresses of this machine."""
_UUID: Final = "(?![0-]+$)[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_NAME: Final = r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?"
_IPV6: Final = r"([0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f.]*"
_URL: Final = rf"(https://({_NAME}|\[{_IPV6}\])|http://({LOCAL}|\[::1\]))(:[1-9][0-9]{{0,4}})?(/[^\s?#\\]*)?"
_URL_TEXT: Final = _text("https://…, or http:// on localhost, without user, ? or #", _URL)

TEXT: Final = _text()
USER: Final = Kind(_read_user, TEXT.schema)
PASSWORD: Final = Kind(_read_password, TEXT.schema)
MQTT_PASSWORD: Final = _secret(_text(longest=16_383))  # MQTT: 65535 bytes; UTF-8: up to 4 each
ACCOUNT_ID: Final = _secret(_text("a UUID, such as 0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", _UUID))
ACCOUNT: Final = _text(
    "lowercase letters and digits, separated by single _, such as anna_marie; not bridge", ACCOUNT_KEY
)
TOPIC_NAME: Final = _text("letters, digits, _ and -, in levels separated by /", TOPIC, shown=True)
ANY_TOPIC: Final = _text("a topic of up to 256 characters, without + or #", "[^+#]+", shown=True)
HOST: Final = _text("a host name or address, without mqtt:// or port", rf"{_NAME}|{_IPV6}(%\w+)?")
ADDRESS: Final = _text("an address or name of this machine, without http:// or port", rf"{_NAME}|{_IPV6}(%\w+)?")
TOKEN: Final = _secret(_text("up to 128 ASCII letters, digits and symbols, without spaces", "[!-~]+", 128))
CLIENT_ID: Final = _text("up to 128 characters, without + or #", "[^+#]*", 128)  # empty: the default
SHARE_URL: Final = Kind(_read_address, _URL_TEXT.schema)
_READ_FILE: Final = _path("an existing file that this user may read", os.R_OK, os.path.isfile)
_READ_FOLDER: Final = _path("an existing folder that this user may read", os.R_OK | os.X_OK, os.path.isdir)
FILE: Final = Kind(_READ_FILE, {"type": "string", "format": "path"}, shown=True)
FOLDER: Final = Kind(_READ_FOLDER, {"type": "string", "format": "directory-path"}, shown=True)
SWITCH: Final = Kind(_read_switch, {"type": "boolean"}, shown=True)
GLUCOSE: Final = _whole(1, 1000)
PORT: Final = _whole(1, 65535, empty=0)
WEB_PORT: Final = _whole(1, 65535)
SECONDS: Final = _whole(5, 65535)
MINUTES: Final = _whole(10, 60)
SHARD_INDEX: Final = _whole(0, 999)
SHARD_COUNT: Final = _whole(1, 1000)
REGION: Final = _choice(*get_args(Region))
UNIT: Final = _choice(*get_args(Unit))
PROTOCOL: Final = _choice(*get_args(Protocol), also=(5,))
STATISTICS: Final = _choice(*get_args(Statistics), also=(False,))  # how YAML reads off
LOG_LEVEL: Final = _choice(*get_args(LogLevel))

BASE_TOPIC: Final = "dexcom2mqtt"
"""The default topic below which everything is published."""


def client_id_of(base_topic: str, client_id: str) -> str:
    """Return the client id that was given, or else the one derived from the topic."""
    return client_id or base_topic.replace("/", "_")


def sharded(client_id: str, index: int, count: int) -> str:
    """Return the client id of one of several processes; of a single process it stays as it is."""
    return client_id if count == 1 else f"{client_id}-{index}"


def shard_conflict(index: int, count: int) -> str | None:
    """Return what is allowed for the index, if it does not fit the count; else None."""
    return None if index < count else f"less than {count}, the value of shard.count, because it begins at 0"


def safe(name: str) -> str:
    """Return a name if it looks like a key, else ?; {username: anna,password:secret} turns the secret into a key."""
    return name if re.fullmatch("[A-Za-z0-9_-]{1,99}", name) else "?"
