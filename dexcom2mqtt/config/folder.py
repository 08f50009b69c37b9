"""The accounts of ``accounts_dir``: a folder with one file for each account.

A file that cannot be used costs only its own account. The daemon looks at the folder every minute and there may be
thousands of files, so a file is read again only if its status changed, and parsed again only if its text did.
"""

from __future__ import annotations

import os
import shlex
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.config import sources
from dexcom2mqtt.config.problems import ConfigError, Problem, password_warning
from dexcom2mqtt.config.settings import Account, same_person
from dexcom2mqtt.config.structure import structured
from dexcom2mqtt.config.values import ACCOUNT, NOTHING, Secret
from dexcom2mqtt.config.yaml_text import parse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SUFFIX: Final = ".yaml"
_FOR_ALL: Final = 0o004
_IN_KUBERNETES: Final = "in the pod, set defaultMode: 0440 for the volume, and fsGroup: in its securityContext"


class Contents(NamedTuple):
    """What the folder holds."""

    accounts: Mapping[str, Account] = {}
    """By key, in the order of the keys. Without those that are also below ``accounts:``."""
    problems: tuple[str, ...] = ()
    """A text for each file that cannot be used, with everything that is wrong in it; no secret."""
    broken: tuple[str, ...] = ()
    """The keys that have no account because of these problems."""
    warnings: tuple[str, ...] = ()


class _File(NamedTuple):
    """A file as it was when it was last looked at."""

    stamp: tuple[int, ...] = ()
    """Differs after every change of the file or of its permissions."""
    text: Secret | None = None
    """None if it could not be read; its stamp then matches none, so that it is tried again."""
    owner: int = 0
    exposed: bool = False
    """Whether everybody on this machine may read it."""
    account: Account | None = None
    problem: str = ""
    """What is wrong with the file; empty if it has an account."""
    warning: str = ""


class Folder:
    """The folder, which remembers what it read. Accounts in ``static`` come from elsewhere and win."""

    def __init__(self, path: Path, static: Mapping[str, Account]) -> None:
        self._path = path
        self._static = static
        self._files: dict[str, _File] = {}
        self._contents = Contents()

    def read(self) -> Contents:
        """Return what the folder holds now, the same object if nothing changed. Raises ConfigError if it is gone."""
        try:
            names = os.listdir(self._path)  # noqa: PTH208  # thousands of names, none of which needs a Path
        except OSError as error:
            raise ConfigError(f"accounts_dir: {self._path} cannot be read: {error.strerror}") from None
        keys = sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX) and name[0] != ".")
        files = {key: self._look(key) for key in keys}
        if files != self._files:
            self._files = files
            judged = self._judged()
            self._contents = self._contents if judged == self._contents else judged
        return self._contents

    def _look(self, key: str) -> _File:
        """Return a file as it is now: as it was if its status is the same, with the same account if its text is."""
        try:
            ACCOUNT.read(key)
        except ValueError as error:
            return _File(problem=Problem(("accounts", key), None, str(error), "key").describe(self._where(key)))
        file, known = self._path / f"{key}{_SUFFIX}", self._files.get(key, _File())
        try:
            status = file.stat()
            stamp = (status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)
            if known.stamp == stamp:
                return known
            if not stat.S_ISREG(status.st_mode):  # opening a pipe could take for ever
                return _File(problem=f"{self._shown(key)}: cannot be read: not a regular file")
            text = Secret(sources.read_text(file))
        except OSError as error:
            return _File(problem=f"{self._shown(key)}: cannot be read: {error.strerror}")
        except ConfigError as error:
            return _File(problem=str(error))
        exposed = bool(status.st_mode & _FOR_ALL)
        if text != known.text:
            known = self._parsed(key, text.get_secret_value())
        return known._replace(stamp=stamp, text=text, owner=status.st_uid, exposed=exposed)

    def _parsed(self, key: str, text: str) -> _File:
        """Return a file with its account, or with everything that is wrong in it."""
        place = ("accounts", key)
        try:
            written = parse(self._shown(key), text)
        except ConfigError as error:
            return _File(problem=str(error))
        if not isinstance(written, dict) and written not in (None, NOTHING):
            return _File(problem=f"{self._shown(key)}: has no keys such as username: or password:")
        given = sources.merged([sources.Layer(written, "", ())] if isinstance(written, dict) else [])
        account, problems = structured(Account, given, place)
        if account is None:
            return _File(problem="; ".join(each.describe(self._where(key, each.line)) for each in problems))
        password = given["password"]
        line = Problem((*place, "password"), password, "").line
        warning = password_warning((*place, "password"), password, self._where(key, line))
        return _File(account=account.named(key), warning=warning)

    def _judged(self) -> Contents:
        """Put the files together: those that do not fit the others cannot be used either."""
        accounts: dict[str, Account] = {}
        problems: dict[str, str] = {}
        people = {account.person: key for key, account in self._static.items()}
        for key, file in self._files.items():
            if key in self._static:
                problems[key] = f"accounts.{key}: is also below accounts:, which wins; keep only one{self._where(key)}"
            elif file.account is None:
                problems[key] = file.problem
            elif (first := people.setdefault(file.account.person, key)) != key:
                problems[key] = f"accounts: {same_person(first, key)}{self._where(key)}"
            else:
                accounts[key] = file.account
        return Contents(
            accounts,
            tuple(problems.values()),
            tuple(key for key in problems if key not in self._static),
            tuple(filter(None, [*(file.warning for file in self._files.values()), self._exposed()])),
        )

    def _exposed(self) -> str:
        """Return the warning that everybody can read passwords, or an empty text."""
        exposed = {key: file.owner for key, file in self._files.items() if file.exposed}
        if not exposed:
            return ""
        files = f"{shlex.quote(str(self._path.absolute()))}/*{_SUFFIX}"
        remedy = f"fix it with: chmod 600 {files}"
        if set(exposed.values()) != {os.geteuid()}:  # then 600 alone would lock us out
            remedy = f"fix it with: sudo chown {os.geteuid()} {files} && sudo chmod 600 {files}"
        if (self._path / "..data").is_symlink():  # a mounted Secret, which nobody can change here
            remedy = _IN_KUBERNETES
        number = f"{len(exposed)} files" if len(exposed) > 1 else self._shown(*exposed)
        return f"accounts_dir: everybody on this machine may read {number} with passwords; {remedy}"

    def _where(self, key: str, line: int | None = None) -> str:
        return f" ({self._shown(key)}, line {line})" if line else f" ({self._shown(key)})"

    def _shown(self, key: str) -> str:
        """Return the path of a file for a message; a name with line breaks could forge a line in the log."""
        name = f"{key}{_SUFFIX}"
        return f"{self._path}/{name if name.isprintable() else ascii(name)}"
