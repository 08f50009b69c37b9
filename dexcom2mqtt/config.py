"""The configuration: from YAML, secret files and the environment into typed, frozen settings.

Owns the keys with their defaults and limits, the places they come from, the words for every mistake, and
the JSON Schema. Must not know what a setting is used for: nothing in here connects, signs in or waits.

Every value arrives as the text that was written, so that a password 0123 stays 0123; only the field's type
makes it a number or a switch. A validator's ValueError completes the sentence "allowed: …" and holds no
piece of a value that could be a secret: what may be shown is decided in one place, ``_found``.
"""

import difflib
import json
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dexcom2mqtt.topics import ACCOUNT_KEY, TOPIC

DEFAULT_FILES = (Path("config.yaml"), Path("/etc/dexcom2mqtt/config.yaml"))
DOCKER_SECRETS = Path("/run/secrets")

_MAX_BYTES = 512 * 1024  # a thousand accounts fit with every key; what is larger is the wrong file
_MAX_NODES = 50_000  # with every alias followed: a few lines of YAML can stand for billions

_T = TypeVar("_T", str, SecretStr)
_Place = tuple[str, ...]  # the keys that lead to a value, such as ("mqtt", "host")


class ConfigError(Exception):
    """The configuration cannot be used; ``mistakes`` has a text for each reason, none of them a secret."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


# --- what a value may be -----------------------------------------------------------------------------------


def _bare(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _text(allowed: str = "", pattern: str = ".+", longest: int = 256) -> AfterValidator:
    """Make the check for a text of one line that the whole pattern matches; ``allowed`` says it in words."""
    allowed = allowed or f"a text of 1 to {longest} characters, in quotes, without tabs and line breaks"

    def check(value: _T) -> _T:
        text = str(_bare(value))
        # Control characters could forge a line in a log; lone surrogates cannot be sent anywhere.
        clean = not any(unicodedata.category(character) in {"Cc", "Cs"} for character in text)
        if not (clean and len(text) <= longest and re.fullmatch(pattern, text)):
            raise ValueError(allowed)
        return value

    return AfterValidator(check)


def _whole(lowest: int, highest: int) -> BeforeValidator:
    """Make the check for plain digits: of 1_000, 15.0 and 1e3 nobody can say what was meant."""

    def check(value: object) -> int:
        if not re.fullmatch("[0-9]{1,6}", str(value)) or not lowest <= int(str(value)) <= highest:
            raise ValueError(f"a whole number from {lowest} to {highest}")
        return int(str(value))

    return BeforeValidator(check, json_schema_input_type=Annotated[int, Field(ge=lowest, le=highest)])


def _switch(value: object) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if (word := str(value).lower()) not in words:
        raise ValueError("true or false")
    return words[word]


def _address(url: str) -> str:
    try:
        usable = urlsplit(url).hostname and (urlsplit(url).port or 1)
    except ValueError:  # such as a port beyond 65535
        usable = None
    if not usable:
        raise ValueError("https://…, or http:// and localhost, with a host and a port that can be")
    return url.rstrip("/")


def _file(path: Path) -> Path:
    # In this order: is_file raises where a folder on the way may not be searched.
    if "\0" in str(path) or not (os.access(path, os.R_OK) and path.is_file()):
        raise ValueError("a file that exists and that this user may read")
    return path


_UUID = "(?![0-]+$)[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_NAME = r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?"
_IPV6 = r"([0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f.]*"
_LOCAL = r"localhost|127(\.[0-9]{1,3}){3}"
_URL = rf"(https://({_NAME}|\[{_IPV6}\])|http://({_LOCAL}|\[::1\]))(:[1-9][0-9]{{0,4}})?(/[^\s?#\\]*)?"
_UNQUOTED = WithJsonSchema({"type": ["string", "number", "boolean"]})  # to an editor, 0123 is a number

Text = Annotated[str, _text(), _UNQUOTED]
Topic = Annotated[str, _text("letters, digits, _ and -, in levels separated by /", TOPIC), _UNQUOTED]
AnyTopic = Annotated[str, _text("a topic of up to 256 characters, without + and #", "[^+#]+"), _UNQUOTED]
Host = Annotated[str, _text("the host alone, without mqtt:// and port", rf"{_NAME}|{_IPV6}(%\w+)?"), _UNQUOTED]
ClientId = Annotated[str, _text("a text of up to 128 characters, without + and #", "[^+#]+", 128), _UNQUOTED]
ShareUrl = Annotated[
    str,
    _text("https://…, or http:// and localhost, without user, ? and #", _URL),
    AfterValidator(_address),
    _UNQUOTED,
]
Secret = Annotated[SecretStr, _text(), _UNQUOTED]
MqttPassword = Annotated[SecretStr, _text(longest=16_383), _UNQUOTED]  # MQTT: 65535 bytes; UTF-8: up to 4 each
AccountId = Annotated[SecretStr, _text("a UUID, such as 0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", _UUID), _UNQUOTED]
AccountKey = Annotated[
    str,
    _text("small letters and digits, separated by single _, such as anna_marie; not bridge", ACCOUNT_KEY),
    WithJsonSchema({"type": "string", "pattern": f"^{ACCOUNT_KEY}$"}),
]
File = Annotated[Path, AfterValidator(_file)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Glucose = Annotated[int, _whole(1, 1000)]
Port = Annotated[int, _whole(1, 65535)]
Seconds = Annotated[int, _whole(5, 65535)]
Minutes = Annotated[int, _whole(10, 60)]
Region = Literal["us", "ous", "jp"]
Unit = Literal["mg/dL", "mmol/L"]
Protocol = Annotated[Literal["auto", "5", "3.1.1"], WithJsonSchema({"enum": ["auto", 5, "5", "3.1.1"]})]
LogLevel = Literal["debug", "info", "warning", "error"]


# --- the keys ----------------------------------------------------------------------------------------------


def _given(info: ValidationInfo, key: str) -> bool:
    """Whether an earlier key was given: one that failed its own check is missing from ``info.data``."""
    return key not in info.data or info.data[key] is not None


class _Section(BaseModel):
    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        optional = {key for key, field in cls.model_fields.items() if not field.is_required()}
        return {key: value for key, value in given.items() if value is not None or key not in optional}


class Ranges(_Section):
    """Where glucose becomes low and high: in mg/dL, whatever the account's unit."""

    very_low: Glucose = Field(54, description="mg/dL; a reading below it is very low")
    low: Glucose = Field(70, description="mg/dL; a reading below it is low")
    high: Glucose = Field(180, description="mg/dL; a reading above it is high")
    very_high: Glucose = Field(250, description="mg/dL; a reading above it is very high")

    @field_validator("low", "high", "very_high")
    @classmethod
    def _ascending(cls, value: int, info: ValidationInfo) -> int:
        for key, lower in [*info.data.items()][-1:]:
            if value <= lower:
                raise ValueError(f"more than {lower}, which is {key}")
        return value


class Account(_Section):
    """One person whose readings Dexcom Share has."""

    name: Text = Field(
        default_factory=str, validate_default=False, description="display name; default: the key, capitalised"
    )
    account_id: AccountId | None = Field(None, description="UUID of the account, in place of username")
    username: Secret | None = Field(None, description="user name, e-mail or phone number, as +11234567890")
    password: Secret = Field(description="password of the one who wears the sensor, not of a follower")
    region: Region = Field("us", description="us, ous (outside the United States) or jp (Japan)")
    unit: Unit = Field("mg/dL", description="unit of the readings")
    ranges: Ranges = Field(default_factory=Ranges, description="limits in mg/dL, ascending")
    share_url: ShareUrl | None = Field(None, description="base URL to use instead of the region's")

    @field_validator("username")
    @classmethod
    def _one_of_two(cls, username: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if (username is not None) == _given(info, "account_id"):
            raise ValueError("either username or account_id, and not both")
        return username

    @property
    def user(self) -> SecretStr:
        """Who this is to Dexcom: the user name or the account id, as written."""
        return self.username or self.account_id or SecretStr("")


class Tls(_Section):
    """An encrypted connection to the broker; with no key at all it trusts the system's authorities."""

    ca_file: File | None = Field(None, description="PEM file of the authority to trust; default: the system's")
    cert_file: File | None = Field(None, description="PEM file of the client's certificate")
    key_file: File | None = Field(None, description="PEM file of the client's private key")
    verify: Switch = Field(default=True, description="whether the broker must prove that it is the right one")

    @field_validator("key_file")
    @classmethod
    def _both_or_neither(cls, key_file: Path | None, info: ValidationInfo) -> Path | None:
        if (key_file is not None) != _given(info, "cert_file"):
            raise ValueError("cert_file and key_file together, or neither")
        return key_file


class Mqtt(_Section):
    """The broker, and how to speak to it."""

    host: Host = Field("localhost", description="host name or address of the broker, without port")
    tls: Tls | None = Field(None, description="encryption; {} is on, trusting the system's authorities")
    port: Port = Field(default_factory=int, description="port of the broker; default: 1883, or 8883 with tls")
    username: Secret | None = Field(None, description="user name at the broker")
    password: MqttPassword | None = Field(None, description="password at the broker")
    protocol: Protocol = Field("auto", description="MQTT version; auto: 5, or 3.1.1 where 5 is refused")
    base_topic: Topic = Field("dexcom2mqtt", description="topic below which everything is published")
    client_id: ClientId = Field(
        default_factory=str, description='name of this program at the broker; default: base_topic with "_" for "/"'
    )
    keepalive: Seconds = Field(60, description="seconds (5 to 65535) between signs of life")

    @field_validator("port", mode="before")
    @classmethod
    def _usual_port(cls, port: object, info: ValidationInfo) -> object:
        return port or (8883 if _given(info, "tls") else 1883)

    @field_validator("client_id", mode="before")
    @classmethod
    def _usual_client_id(cls, client_id: object, info: ValidationInfo) -> object:
        return client_id or info.data.get("base_topic", "wrong").replace("/", "_")

    @field_validator("password")
    @classmethod
    def _not_alone(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if password is not None and not _given(info, "username"):
            raise ValueError("a password only together with mqtt.username")
        return password


class HomeAssistant(_Section):
    """How Home Assistant learns of the accounts."""

    discovery: Switch = Field(default=True, description="whether the accounts appear there by themselves")
    discovery_prefix: Topic = Field("homeassistant", description="topic below which it looks for devices")
    status_topic: AnyTopic = Field("homeassistant/status", description="topic where it says that it started")


class _Layered(BaseSettings, _Section):
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the signature of pydantic-settings
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the layers that ``load`` has read; pydantic's own sources would guess at types."""
        given = init_settings()
        return tuple(given["layers"]) if "layers" in given else (init_settings,)


class _Name(_Layered):
    """What tells one daemon from another, with the other keys at their defaults."""

    mqtt: Mqtt = Field(default_factory=Mqtt)


class Settings(_Layered):
    """The whole configuration, complete and free of contradictions."""

    accounts: dict[AccountKey, Account] = Field(
        default_factory=dict,
        description="the people; each one's key is the id in topics and entities",
        json_schema_extra={"additionalProperties": False},
    )
    mqtt: Mqtt = Field(default_factory=Mqtt, description="the broker")
    home_assistant: HomeAssistant = Field(default_factory=HomeAssistant, description="Home Assistant")
    stale_after: Minutes = Field(15, description="minutes (10 to 60) for which a reading is current")
    log_level: LogLevel = Field("info", description="the least important kind of line that is logged")

    _exposed: str = PrivateAttr("")

    @field_validator("accounts", mode="wrap")
    @classmethod
    def _one_key_per_person(cls, given: object, check: ValidatorFunctionWrapHandler) -> dict[str, Account]:
        """Name the accounts; tell what is wrong between them together with what is wrong in each."""
        accounts: dict[str, Account] = {}
        wrong: list[Any] = []
        try:
            accounts = check(given)
        except ValidationError as error:
            wrong += error.errors()
        wrong += [{"type": "value_error", "input": given, "ctx": {"error": why}} for why in _clashes(given)]
        if wrong:
            raise ValidationError.from_exception_data("accounts", cast("list[InitErrorDetails]", wrong))
        return {
            key: account.model_copy(update={"name": account.name or key.replace("_", " ").capitalize()})
            for key, account in accounts.items()
        }

    @property
    def stale_after_seconds(self) -> int:
        """For how many seconds a reading is current."""
        return self.stale_after * 60

    @property
    def warnings(self) -> tuple[str, ...]:
        """What works but is unsafe, each with its remedy; never a secret."""
        local = re.fullmatch(f"{_LOCAL}|::1", self.mqtt.host.lower())
        open_line = (
            "mqtt: the broker is on another machine and tls is not set, so what is sent there can be read on the way; "
            "if the broker offers TLS, write tls: {} below mqtt:"
        )
        return tuple(filter(None, (self._exposed, "" if local or self.mqtt.tls else open_line)))


def _clashes(accounts: object) -> Iterator[ValueError]:
    """Compare accounts as they were written, for each may be wrong in itself."""
    if accounts == {}:
        example = "\n  anna:\n    username: anna@example.com\n    password: 'her password at Dexcom'"
        yield ValueError(f"at least one; for example, below accounts:{example}")
    known: dict[tuple[str, str], str] = {}
    for key, account in accounts.items() if isinstance(accounts, dict) else ():
        fields = dict(account) if isinstance(account, dict | Account) else {}
        user = _bare(fields.get("username") or fields.get("account_id"))
        region = str(fields.get("region") or Account.model_fields["region"].default)
        if isinstance(user, str) and (first := known.setdefault((region, user.casefold()), key)) != key:
            yield ValueError(f"one key for each person, but {_safe(first)} and {_safe(key)} are the same")


_MODELS: dict[_Place, type[BaseModel]] = {
    (): Settings,
    ("accounts", "*"): Account,
    ("accounts", "*", "ranges"): Ranges,
    ("mqtt",): Mqtt,
    ("mqtt", "tls"): Tls,
    ("home_assistant",): HomeAssistant,
}


def _model(place: _Place) -> type[BaseModel] | None:
    """Find whose keys stand at a place; None where a value stands, and for accounts: their keys are free."""
    return _MODELS.get((*place[:1], "*", *place[2:]) if place[:1] == ("accounts",) and place[1:] else place)


# --- where values come from --------------------------------------------------------------------------------

_Source = tuple[str, _Place, Callable[[], str]]  # what to call it, where its value belongs, how to read it
_NAMING = ("base_topic", "client_id")  # of the section mqtt


def load(
    path: Path | None = None, *, environ: Mapping[str, str] = os.environ, secrets: Sequence[Path] | None = None
) -> Settings:
    """Read the configuration: environment beats secret files beat YAML, key by key.

    ``path`` is the file, which then must exist; else ``$DEXCOM2MQTT_CONFIG``, likewise; else the first of
    ``DEFAULT_FILES`` that exists, or none. Of the folders ``secrets`` (by default Docker's, then systemd's) the
    later beats the earlier. Raises ConfigError with every mistake that can be told.
    """
    file, sources = _find(path, environ, secrets)
    layers, mistakes = _read_all(sources)
    try:
        settings = Settings(layers=layers)  # type: ignore[call-arg]  # no key: for settings_customise_sources
    except ValidationError as error:
        wrong = [each for each in error.errors() if not mistakes or _stands_alone(each)]
        if not layers and not mistakes:
            mistakes.append(f"no configuration: write {DEFAULT_FILES[0]} or {DEFAULT_FILES[1]}, or name it by --config")
        mistakes += [_mistake(each, layers) for each in wrong]
    if mistakes:
        raise ConfigError(*mistakes)
    # What systemd hands over is for the daemon alone; group bits in its mode stand for an access control list.
    if file and str(file.parent) != environ.get("CREDENTIALS_DIRECTORY"):
        settings._exposed = _exposed(file, layers[-1], settings)  # noqa: SLF001  # a fact, but not a key
    return settings


def client_id(
    path: Path | None = None, *, environ: Mapping[str, str] = os.environ, secrets: Sequence[Path] | None = None
) -> str:
    """Read ``mqtt.client_id`` from where ``load`` does, but no secret and nothing else. Raises ConfigError."""
    _, sources = _find(path, environ, secrets)
    layers, mistakes = _read_all(
        source for source in sources if source[1][:1] in {(), ("mqtt",)} and {*source[1][1:]} <= {*_NAMING}
    )
    for layer in layers:
        layer.keep_naming()
    try:
        name = _Name(layers=layers)  # type: ignore[call-arg]  # no key: for settings_customise_sources
    except ValidationError as error:
        mistakes += [_mistake(each, layers) for each in error.errors()]
    if mistakes:
        raise ConfigError(*mistakes)
    return name.mqtt.client_id


def _find(
    path: Path | None, environ: Mapping[str, str], secrets: Sequence[Path] | None
) -> tuple[Path | None, Iterator[_Source]]:
    """Find the configuration file, if there is one, and all that has a say."""
    named = path or environ.get("DEXCOM2MQTT_CONFIG")
    # Path.exists would raise where a folder may not be searched.
    usual = (each for each in DEFAULT_FILES if os.path.exists(each))  # noqa: PTH110  # see above
    file = Path(named) if named else next(usual, None)
    if secrets is None:
        systemd = environ.get("CREDENTIALS_DIRECTORY")
        secrets = [DOCKER_SECRETS, Path(systemd)] if systemd else [DOCKER_SECRETS]
    return file, _sources(environ, secrets, file)


def _read_all(sources: Iterable[_Source]) -> tuple[list["_Layer"], list[str]]:
    """Read each source; return what they say, and what is wrong with those that cannot be read."""
    layers: list[_Layer] = []
    mistakes: list[str] = []
    for name, place, read in sources:
        try:
            layers.append(_Layer(name, place, read()))
        except ConfigError as error:
            mistakes += error.mistakes
    return layers, mistakes


def _sources(environ: Mapping[str, str], secrets: Sequence[Path], file: Path | None) -> Iterator[_Source]:
    """List what has a say, the strongest first: a deep key beats a text that holds its whole section."""
    set_variables = [(name, text) for name, text in environ.items() if text]
    groups: list[list[_Source]] = [
        [(f"the environment variable {_safe(name)}", _place(name), partial(str, text)) for name, text in set_variables]
    ]
    for folder in reversed(secrets):
        files = folder.glob("dexcom2mqtt_*")
        groups.append([(f"the file {each}", _place(each.name), partial(_read, each, r"\r?\n\Z")) for each in files])
    for group in groups:
        ours = [source for source in group if source[1]]
        yield from sorted(ours, key=lambda source: (-len(source[1]), source[0]))
    if file:
        yield str(file), (), partial(_read, file)


def _place(name: str) -> _Place:
    """Translate ``DEXCOM2MQTT_MQTT__HOST`` to ``("mqtt", "host")``; () for a name that is none of ours.

    Container platforms invent variables such as DEXCOM2MQTT_PORT_1883_TCP, so an unknown first key is none.
    """
    prefix, _, rest = name.lower().partition("dexcom2mqtt_")
    place = tuple(rest.split("__", 4))  # no key lies deeper
    ours = not prefix and place[0] in Settings.model_fields and (len(place) == 1 or _is_section(place[:1]))
    return place if ours else ()


def _is_section(place: _Place) -> bool:
    return place == ("accounts",) or _model(place) is not None


class _Layer(PydanticBaseSettingsSource):
    """What one file or variable says; pydantic-settings lays them over each other."""

    def __init__(self, name: str, place: _Place, text: str) -> None:
        super().__init__(Settings)
        value = _parse(name, text) if _is_section(place) else text
        for key in reversed(place):
            value = {key: value}
        if not isinstance(value, dict | None):
            raise ConfigError(f"{name}: no keys such as accounts: and mqtt: in it")
        self.tree: dict[str, Any] = value or {}
        self.origin = f" (from {name})" if place else ""

    def __call__(self) -> dict[str, Any]:
        return self.tree

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002  # abstract
        return self.tree.get(field_name), field_name, False

    def keep_naming(self) -> None:
        """Forget all but the keys that tell one daemon from another."""
        mqtt = self.tree.get("mqtt")
        if isinstance(mqtt, dict):
            mqtt = {key: value for key, value in mqtt.items() if key in _NAMING}
        self.tree = {"mqtt": mqtt} if "mqtt" in self.tree else {}

    def at(self, place: _Place) -> object:
        """Return what is said about a place; None for nothing."""
        value: object = self.tree
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def _read(file: Path, drop: str = r"\Z") -> str:
    """Read a text; ``drop`` is a pattern of what does not belong to it."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{file}: is not a text in UTF-8; save it as one") from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{file}: is larger than {_MAX_BYTES} bytes and so cannot be what was meant")
    return re.sub(drop, "", text)


def _exposed(file: Path, layer: _Layer, settings: Settings) -> str:
    """Return the warning that a configuration file with a password in it is open to others, or nothing."""
    places = [("mqtt", "password"), *(("accounts", key, "password") for key in settings.accounts)]
    status = file.stat()
    if not status.st_mode & 0o044 or not any(layer.at(place) for place in places):
        return ""
    path = shlex.quote(str(file.absolute()))
    remedy = f"chmod 600 {path}"
    if status.st_uid != os.geteuid():  # then 600 alone would lock us out
        remedy = f"sudo chown {os.geteuid()} {path} && sudo {remedy}"
    return f"{file}: holds a password, and others on this machine may read it; mend it with: {remedy}"


# --- YAML in which everything is a text --------------------------------------------------------------------


class _Refused(yaml.MarkedYAMLError):
    """Proper YAML, but nothing for a configuration."""

    def __init__(self, node: yaml.Node, problem: str) -> None:
        super().__init__(problem=problem, problem_mark=node.start_mark)


_INVISIBLE = "a character that cannot be seen; delete the line and type it anew"
_UNKNOWN = "not YAML; put values with special characters in quotes"
_CAUSES = {  # from a piece of PyYAML's words to ours: its own quote the file, and so perhaps a password
    r"character '\t'": "a tab; indent with spaces",
    "that cannot start any token": "a value that begins with @, % or ` must be in quotes",
    "alias": "a value that begins with * must be in quotes",
    "anchor": "a value that begins with & must be in quotes",
    "tag": "a value that begins with ! must be in quotes",
    "block scalar": "a value that begins with | or > must be in quotes",
    "escape": "within double quotes a backslash has a meaning of its own; use single quotes",
    "quoted scalar": "a quote is opened here and never closed",
    "parsing a flow": "a value that begins with [ or { must be in quotes; else its end or a comma is missing",
    "the node content": "a value that begins with a comma, ] or } must be in quotes",
    "mapping values": "a second colon; put the value in quotes, or mend the indentation here or one line above",
    "could not find expected ':'": "a key without a colon and a space after it",
    "not allowed here": "a value that begins with - or ? must be in quotes",
    "block end": "not indented like the lines above, or behind a closing quote",
    "document": "a second document; write everything into one, without the lines --- and ...",
}


def _parse(name: str, text: str) -> Any:  # noqa: ANN401  # dict, list, text or None
    """Read YAML; raise ConfigError with line, column and cause, but without any piece of the text."""
    why: str | None
    mark: yaml.Mark | None
    try:
        loader = yaml.BaseLoader(text)
        root = loader.get_single_node()
        return None if root is None else _value(root, iter(range(_MAX_NODES)))
    except yaml.reader.ReaderError as error:
        before = text[: error.position].split("\n")
        why, mark = _INVISIBLE, yaml.Mark("", 0, len(before) - 1, len(before[-1]), None, 0)
    except _Refused as error:
        why, mark = error.problem, error.problem_mark
    except yaml.MarkedYAMLError as error:
        problem = f"{error.context} {error.problem}"
        why = next((ours for theirs, ours in _CAUSES.items() if theirs in problem), _UNKNOWN)
        # Where a quote or bracket was opened tells more than where the file ended.
        opened = problem.startswith(("while scanning", "while parsing a flow")) and error.context_mark
        mark = opened or error.problem_mark
    except (ValueError, OverflowError, RecursionError):  # what PyYAML does not foresee
        why, mark = _UNKNOWN, loader.get_mark()
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    raise ConfigError(f"{name}{where}: {why}")


def _value(node: yaml.Node, budget: Iterator[int]) -> Any:  # noqa: ANN401  # dict, list, text or None
    """Turn a node into what was written: all is text but an unquoted null, ~ or nothing at all."""
    if next(budget, None) is None:
        raise _Refused(node, "too many values; aliases (*) must not multiply them")
    if node.tag not in {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}:
        raise _Refused(node, _CAUSES["tag"])
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in {"", "~", "null"} else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, budget) for item in node.value]
    keys: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _value(key_node, budget)
        if not isinstance(key, str):
            raise _Refused(key_node, "a key that is not a word")
        if key in keys:
            raise _Refused(key_node, "this key is written a second time here")
        keys[key] = _value(value_node, budget)
    merged = keys.pop("<<", {})
    for base in merged if isinstance(merged, list) else [merged]:
        if not isinstance(base, dict):
            raise _Refused(node, "<<: takes a section, by its alias")
        keys = base | keys
    return keys


# --- the words for a mistake -------------------------------------------------------------------------------

SHOWN = {  # keys whose value cannot be a secret
    *Ranges.model_fields,
    *Tls.model_fields,
    *HomeAssistant.model_fields,
    *("region", "unit", "port", "protocol", "base_topic", "keepalive", "stale_after", "log_level"),
}


def _mistake(error: ErrorDetails, layers: Sequence[_Layer]) -> str:
    place = tuple(str(key) for key in (error["loc"][:-1] if _about_a_key(error) else error["loc"]))
    words = _unknown(place) if error["type"] == "extra_forbidden" else f"{_found(error)}; allowed: {_allowed(error)}"
    origins = [layer.origin for layer in layers if layer.at(place) is not None]
    between = place == ("accounts",) and len(origins) > 1  # what is wrong between accounts has no single origin
    return f"{'.'.join(map(_safe, place))}: {words}{'' if between or not origins else origins[0]}"


def _stands_alone(error: ErrorDetails) -> bool:
    """Whether something is wrong in itself, whatever another source would say that could not be read."""
    return error["type"] == "extra_forbidden" or not isinstance(error["input"], dict | list | None)


def _about_a_key(error: ErrorDetails) -> bool:
    """Whether it is an account's key itself that is wrong: pydantic appends this to its place."""
    return error["loc"][-1] == "[key]" and error["type"] == "value_error"


def _unknown(place: _Place) -> str:
    model = _model(place[:-1])
    allowed = [*model.model_fields] if model else []
    meant = [f" did you mean {key}?" for key in difflib.get_close_matches(place[-1][:40].lower(), allowed, 1)]
    return f"unknown key;{''.join(meant)} allowed: {', '.join(allowed)}"


def _found(error: ErrorDetails) -> str:
    value, key = error["input"], error["loc"][-1]
    if _about_a_key(error):
        return "not usable as a key"
    if value in ("", None, {}) or error["type"] == "missing":
        return "missing, or empty"
    if isinstance(value, dict | list):
        return "found a clash" if error["type"] == "value_error" else "found keys or a list"
    return f"found {str(value)[:60]!r}" if key in SHOWN else "found a value not shown here, as it may be a secret"


def _allowed(error: ErrorDetails) -> str:
    match error["type"]:
        case "value_error":
            return str(error["ctx"]["error"])
        case "literal_error":
            choices = re.findall("'(.*?)'", error["ctx"]["expected"])
            meant = [f"; write {choice}" for choice in choices if choice.lower() == str(error["input"]).lower()]
            return ", ".join(choices) + "".join(meant)
        case "model_type" | "dict_type":
            return "keys, indented below it"
    return "a text, in quotes"


def _safe(name: str) -> str:
    """Return a name that looks like a key; {username: anna,password:secret} makes a key out of the secret."""
    return name if re.fullmatch("[A-Za-z0-9_-]{1,99}", name) else "?"


# --- for editors -------------------------------------------------------------------------------------------


def schema() -> str:
    """Return the JSON Schema (2020-12) of the file, as JSON; it requires no key: each may come from elsewhere."""
    tree = Settings.model_json_schema()
    for model in (tree, *tree["$defs"].values()):
        required = model.pop("required", ())
        for key, field in model["properties"].items():
            if key not in required and field.get("default", "") is not None:  # else null is in it already
                either = [field, {"type": "null"}]
                model["properties"][key] = {"description": field.pop("description"), "anyOf": either}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **tree}, indent=2)
