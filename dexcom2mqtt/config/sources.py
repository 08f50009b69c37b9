"""Where values come from: the file, the environment and secret files, each a layer of keys."""

from __future__ import annotations

import os
import re
import shlex
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dexcom2mqtt.config.problems import ConfigError
from dexcom2mqtt.config.values import NOTHING, safe
from dexcom2mqtt.config.yaml_text import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from dexcom2mqtt.config.problems import Place, Problem
    from dexcom2mqtt.config.settings import Settings

DEFAULT_FILES: Final = (Path("config.yaml"), Path("/etc/dexcom2mqtt/config.yaml"))
DOCKER_SECRETS: Final = Path("/run/secrets")

_NOT_HANDED_OVER: Final = (
    "; systemd did not hand it over (LoadCredential= in the unit). In a Proxmox, Incus or LXD container, install "
    "systemd/lxc.conf: docs/deployment.md has the commands"
)
_MAX_BYTES = 512 * 1024  # enough for a thousand accounts with every key; anything larger is the wrong file


class Source(NamedTuple):
    """Something that may hold values."""

    name: str
    place: Place
    """Where its text belongs: () for the configuration file."""
    read: Callable[[], str]


class Layer(NamedTuple):
    """The keys and values of one file or variable."""

    tree: Mapping[str, Any]
    name: str
    place: Place

    def where(self, line: int | None) -> str:
        """Return where something in it was written, to append to a problem."""
        if self.place:
            return f" (from {self.name})"
        return f" ({self.name}, line {line})" if line else ""

    def at(self, place: Place) -> object:
        """Return what it holds at a place; None if nothing."""
        value: object = self.tree
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def find(
    path: Path | None, environ: Mapping[str, str], secrets: Sequence[Path] | None
) -> tuple[Path | None, Iterator[Source]]:
    """Find the configuration file, if there is one, and all sources."""
    named = path or environ.get("DEXCOM2MQTT_CONFIG")
    # Path.exists would raise if a folder may not be searched.
    usual = (each for each in DEFAULT_FILES if os.path.exists(each))  # noqa: PTH110  # see above
    file = Path(named) if named else next(usual, None)
    if secrets is None:
        systemd = environ.get("CREDENTIALS_DIRECTORY")
        secrets = [DOCKER_SECRETS, Path(systemd)] if systemd else [DOCKER_SECRETS]
    return file, _sources(environ, secrets, file)


def read_all(sources: Iterable[Source], is_section: Callable[[Place], bool]) -> tuple[list[Layer], list[str]]:
    """Read each source; return their layers, and the problems of those that cannot be read.

    A text is YAML if ``is_section`` says that keys belong at its place, and a value otherwise.
    """
    layers: list[Layer] = []
    problems: list[str] = []
    for source in sources:
        try:
            layers.append(_layer(source, is_section))
        except ConfigError as error:
            problems += error.problems
    return layers, problems


def _sources(environ: Mapping[str, str], secrets: Sequence[Path], file: Path | None) -> Iterator[Source]:
    """List the sources, the strongest first: a deep key beats a text with its whole section."""
    groups: list[list[Source]] = [
        [
            Source(f"the environment variable {safe(name)}", _place(name), partial(str, text))
            for name, text in environ.items()
            if text
        ]
    ]
    for folder in reversed(secrets):
        files = folder.glob("dexcom2mqtt_*")
        read = partial(partial, read_text, drop=r"\r?\n\Z")
        groups.append([Source(f"the file {each}", _place(each.name), read(each)) for each in files])
    for group in groups:
        ours = [source for source in group if source.place]
        yield from sorted(ours, key=lambda source: (-len(source.place), source.name))
    if file:
        yield Source(str(file), (), partial(read_text, file))


def _place(name: str) -> Place:
    """Translate ``DEXCOM2MQTT_MQTT__HOST`` to ``("mqtt", "host")``; () for a name without that prefix."""
    prefix, _, rest = name.lower().partition("dexcom2mqtt_")
    return () if prefix or not rest else tuple(rest.split("__", 4))  # no key lies deeper


def _layer(source: Source, is_section: Callable[[Place], bool]) -> Layer:
    value = parse(source.name, source.read()) if is_section(source.place) else source.read()
    for key in reversed(source.place):
        value = {key: value}
    if value is NOTHING:
        value = None
    if not isinstance(value, dict | None):
        raise ConfigError(f"{source.name}: has no keys such as accounts: or mqtt:")
    return Layer(value or {}, source.name, source.place)


def described(problems: Iterable[Problem], layers: Sequence[Layer]) -> list[str]:
    """Describe each problem and where it comes from."""
    return [each.describe(where(each, layers)) for each in problems]


def where(problem: Problem, layers: Sequence[Layer]) -> str:
    """Return where the value of a problem was written, or what it is missing from."""
    holding = [layer for layer in layers if layer.at(problem.place) is not None]
    if problem.place == ("accounts",) and len(holding) > 1:  # a conflict between accounts has no single origin
        return ""
    missing_from = [layer for layer in layers[-1:] if not layer.place and layer.at(problem.place[:-1]) is not None]
    return next((layer.where(problem.line) for layer in (*holding, *missing_from)), "")


def merged(layers: Sequence[Layer], is_switch: Callable[[Place], bool] = lambda _: False) -> dict[str, Any]:
    """Merge the layers: the first beats the others, key by key.

    NOTHING becomes None, except at a place of ``is_switch``, where it is a problem.
    """
    return _settled(reduce(_over, (layer.tree for layer in layers), {}), (), is_switch)


def _settled(tree: Mapping[str, Any], place: Place, is_switch: Callable[[Place], bool]) -> dict[str, Any]:
    settled: dict[str, Any] = {}
    for key, value in tree.items():
        here = (*place, str(key))
        if isinstance(value, dict):
            settled[key] = _settled(value, here, is_switch)
        else:
            settled[key] = None if value is NOTHING and not is_switch(here) else value
    return settled


def _over(strong: Mapping[str, Any], weak: Mapping[str, Any]) -> dict[str, Any]:
    sections = (
        key for key in strong.keys() & weak.keys() if isinstance(strong[key], dict) and isinstance(weak[key], dict)
    )
    return {**weak, **strong, **{key: _over(strong[key], weak[key]) for key in sections}}


def read_text(file: Path, drop: str = r"\Z") -> str:
    """Read a text, without what the pattern ``drop`` matches. Raises ConfigError."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}{_NOT_HANDED_OVER * _by_systemd(file)}") from None
    except ValueError:
        raise ConfigError(f"{file}: is not UTF-8 text; save it as UTF-8") from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{file}: is larger than {_MAX_BYTES} bytes, so it must be the wrong file")
    return re.sub(drop, "", text)


def _by_systemd(file: Path) -> bool:
    return file.is_relative_to("/run/credentials")


def exposed(file: Path, layer: Layer, settings: Settings) -> str:
    """Return the warning that others can read a configuration file with a password in it, or an empty text."""
    places = [("mqtt", "password"), ("web", "token"), *(("accounts", key, "password") for key in settings.accounts)]
    status = file.stat()
    if not status.st_mode & 0o044 or not any(layer.at(place) for place in places):
        return ""
    path = shlex.quote(str(file.absolute()))
    remedy = f"chmod 600 {path}"
    if status.st_uid != os.geteuid():  # then 600 alone would lock us out
        remedy = f"sudo chown {os.geteuid()} {path} && sudo {remedy}"
    return f"{file}: holds a password, and others on this machine may read it; fix it with: {remedy}"
