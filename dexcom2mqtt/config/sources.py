"""Where values come from: the file, the environment and secret files, each of which is a layer of keys."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dexcom2mqtt.config.mistakes import ConfigError
from dexcom2mqtt.config.settings import Place, Settings, key_at, keys_of
from dexcom2mqtt.config.values import safe
from dexcom2mqtt.config.yaml_text import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

DEFAULT_FILES: Final = (Path("config.yaml"), Path("/etc/dexcom2mqtt/config.yaml"))
DOCKER_SECRETS: Final = Path("/run/secrets")

_MAX_BYTES = 512 * 1024  # a thousand accounts fit with every key; what is larger is the wrong file

Source = tuple[str, Place, "Callable[[], str]"]
"""What to call it, where its value belongs, how to read it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one file or variable says."""

    tree: Mapping[str, Any]
    origin: str
    """Where it comes from, as a mistake tells it; nothing for the file of the configuration."""

    def at(self, place: Place) -> object:
        """Return what is said about a place; None for nothing."""
        value: object = self.tree
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def find(
    path: Path | None, environ: Mapping[str, str], secrets: Sequence[Path] | None
) -> tuple[Path | None, Iterator[Source]]:
    """Find the configuration file, if there is one, and all that has a say."""
    named = path or environ.get("DEXCOM2MQTT_CONFIG")
    # Path.exists would raise where a folder may not be searched.
    usual = (each for each in DEFAULT_FILES if os.path.exists(each))  # noqa: PTH110  # see above
    file = Path(named) if named else next(usual, None)
    if secrets is None:
        systemd = environ.get("CREDENTIALS_DIRECTORY")
        secrets = [DOCKER_SECRETS, Path(systemd)] if systemd else [DOCKER_SECRETS]
    return file, _sources(environ, secrets, file)


def read_all(sources: Iterable[Source]) -> tuple[list[Layer], list[str]]:
    """Read each source; return what they say, and what is wrong with those that cannot be read."""
    layers: list[Layer] = []
    mistakes: list[str] = []
    for name, place, read in sources:
        try:
            layers.append(_layer(name, place, read()))
        except ConfigError as error:
            mistakes += error.mistakes
    return layers, mistakes


def _sources(environ: Mapping[str, str], secrets: Sequence[Path], file: Path | None) -> Iterator[Source]:
    """List what has a say, the strongest first: a deep key beats a text that holds its whole section."""
    set_variables = [(name, text) for name, text in environ.items() if text]
    groups: list[list[Source]] = [
        [(f"the environment variable {safe(name)}", _place(name), partial(str, text)) for name, text in set_variables]
    ]
    for folder in reversed(secrets):
        files = folder.glob("dexcom2mqtt_*")
        groups.append([(f"the file {each}", _place(each.name), partial(_read, each, r"\r?\n\Z")) for each in files])
    for group in groups:
        ours = [source for source in group if source[1]]
        yield from sorted(ours, key=lambda source: (-len(source[1]), source[0]))
    if file:
        yield str(file), (), partial(_read, file)


def _place(name: str) -> Place:
    """Translate ``DEXCOM2MQTT_MQTT__HOST`` to ``("mqtt", "host")``; () for a name that is none of ours.

    Container platforms invent variables such as DEXCOM2MQTT_PORT_1883_TCP, so an unknown first key is none.
    """
    prefix, _, rest = name.lower().partition("dexcom2mqtt_")
    place = tuple(rest.split("__", 4))  # no key lies deeper
    ours = not prefix and place[0] in keys_of(Settings) and (len(place) == 1 or _is_section(place[:1]))
    return place if ours else ()


def _is_section(place: Place) -> bool:
    key = key_at(place)
    return key is not None and key.section is not None


def _layer(name: str, place: Place, text: str) -> Layer:
    value = parse(name, text) if _is_section(place) else text
    for key in reversed(place):
        value = {key: value}
    if not isinstance(value, dict | None):
        raise ConfigError(f"{name}: no keys such as accounts: and mqtt: in it")
    return Layer(value or {}, f" (from {name})" if place else "")


def merged(layers: Sequence[Layer]) -> dict[str, Any]:
    """Lay them over each other: the first beats the others, key by key."""
    return reduce(_over, (layer.tree for layer in layers), {})


def _over(strong: Mapping[str, Any], weak: Mapping[str, Any]) -> dict[str, Any]:
    sections = (
        key for key in strong.keys() & weak.keys() if isinstance(strong[key], dict) and isinstance(weak[key], dict)
    )
    return {**weak, **strong, **{key: _over(strong[key], weak[key]) for key in sections}}


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


def exposed(file: Path, layer: Layer, settings: Settings) -> str:
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
