"""Settings from all sources together."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from dexcom2mqtt.config import sources
from dexcom2mqtt.config.folder import Contents, Folder
from dexcom2mqtt.config.problems import ConfigError, Problem, password_warning
from dexcom2mqtt.config.settings import Section, Settings, is_section, is_switch, keys_of
from dexcom2mqtt.config.structure import structured
from dexcom2mqtt.config.values import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from dexcom2mqtt.config.problems import Place

S = TypeVar("S", bound=Section)


def load(
    path: Path | None = None, *, environ: Mapping[str, str] = os.environ, secrets: Sequence[Path] | None = None
) -> Settings:
    """Read the configuration: environment beats secret files beat YAML, key by key.

    The file is ``path`` or ``$DEXCOM2MQTT_CONFIG``, which must exist if given, or the first of
    ``sources.DEFAULT_FILES`` that exists, or none. Later folders of ``secrets`` beat earlier ones (by default Docker's,
    then systemd's). Raises ConfigError with every problem found.
    """
    file, found = sources.find(path, environ, secrets)
    layers, problems = sources.read_all((each for each in found if _is_ours(each.place)), is_section)
    tree = sources.merged(layers, is_switch)
    settings, found_in_values = structured(Settings, tree)
    folder, contents, unreadable = _look(tree, settings)
    if problems:  # an unreadable source may hold what is missing
        found_in_values = [each for each in found_in_values if each.stands_alone]
    elif folder:
        found_in_values += _no_account(tree, contents)
    elif not layers:
        first, second = sources.DEFAULT_FILES
        problems.append(f"no configuration: write {first} or {second}, or name one with --config")
    problems += sources.described(_not_for_the_folder(found_in_values, layers, contents), layers)
    problems += unreadable
    if settings is None or problems:
        raise ConfigError(*problems, *contents.problems)
    warnings = [*_odd_passwords(tree, layers)]
    # Only the daemon can read what systemd hands over; group bits in its mode stand for an access control list.
    if file and str(file.parent) != environ.get("CREDENTIALS_DIRECTORY"):
        warnings += filter(None, [sources.exposed(file, layers[-1], settings)])
    settings = replace(settings, source_warnings=tuple(warnings))
    return _Rereading(settings, folder)() if folder else settings


def build(section: type[S], given: Mapping[str, Any]) -> S:
    """Make settings, or a section, from texts, numbers and switches. Raises ConfigError with every problem."""
    made, problems = structured(section, given)
    if made is None:
        raise ConfigError(*(each.describe() for each in problems))
    return made


def _odd_passwords(tree: Mapping[str, Any], layers: Sequence[sources.Layer]) -> Iterator[str]:
    """Warn of passwords that may have been mangled; a password may contain anything, so it is used as written."""
    passwords: dict[Place, Any] = {
        ("accounts", key, "password"): account["password"] for key, account in (tree.get("accounts") or {}).items()
    }
    passwords["mqtt", "password"] = (tree.get("mqtt") or {}).get("password")
    for place, password in passwords.items():
        if warning := password_warning(place, password, sources.where(Problem(place, password, ""), layers)):
            yield warning


def _look(tree: Mapping[str, Any], settings: Settings | None) -> tuple[Folder | None, Contents, list[str]]:
    """Read ``accounts_dir``; return it, what it holds, and why it cannot be read."""
    try:
        path = FOLDER.read(tree.get("accounts_dir"))
    except ValueError:  # there is none, or it is a problem already
        return None, Contents(), []
    folder = Folder(path, settings.accounts if settings else {})
    try:
        return folder, folder.read(), []
    except ConfigError as error:
        return None, Contents(), [*error.problems]


def _no_account(tree: Mapping[str, Any], contents: Contents) -> Iterator[Problem]:
    """Yield the problem that neither the folder nor the rest has an account."""
    if not tree.get("accounts") and not contents.accounts:
        needed = "at least one usable account in it, such as a file anna.yaml with username: and password:"
        yield Problem(("accounts_dir",), tree["accounts_dir"], needed, shown=True)


def _not_for_the_folder(
    problems: Sequence[Problem], layers: Sequence[sources.Layer], contents: Contents
) -> Iterator[Problem]:
    """Explain what is missing in an account of the folder to which a variable or secret file should add something."""
    told = set[str]()
    for problem in problems:
        key = "".join(problem.place[1:2]) if problem.place[:1] == ("accounts",) else ""
        holding = [layer for layer in layers if layer.at(("accounts", key)) is not None]
        in_folder = key in contents.accounts or key in contents.broken
        if not in_folder or not holding or not all(layer.place for layer in holding):
            yield problem
        elif key not in told:
            told.add(key)
            words = (
                f"{key}.yaml in accounts_dir is used as it is: write the value there, or write the whole account here"
            )
            yield Problem(("accounts", key), holding[0].at(("accounts", key)), words, "conflict")


class _Rereading:
    """Settings whose ``accounts_dir`` can be looked at again."""

    def __init__(self, static: Settings, folder: Folder) -> None:
        self._static = static
        self._folder = folder
        self._contents: Contents | None = None
        self._settings = static

    def __call__(self) -> Settings:
        """Return the settings with what the folder holds now, the same object if nothing changed."""
        contents = self._folder.read()
        if contents is not self._contents:
            self._contents = contents
            self._settings = replace(
                self._static,
                accounts={**self._static.accounts, **contents.accounts},
                broken=contents.broken,
                broken_files=contents.problems,
                source_warnings=(*self._static.source_warnings, *contents.warnings),
                reread=self,
            )
        return self._settings


def _is_ours(place: Place) -> bool:
    """Return whether a place begins with a known key. Container platforms add names like DEXCOM2MQTT_PORT_1883_TCP."""
    return not place or (place[0] in keys_of(Settings) and (len(place) == 1 or is_section(place[:1])))
