"""Write a repository with the app for Home Assistant: ``scripts/home-assistant-app FOLDER [--image NAME]``.

It needs only Python, and what pip downloads to build the package. The templates are beside this file. None of them is
called config.yaml, because Home Assistant treats every file of that name in a repository as an app.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pictures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent
APP: Final = "dexcom2mqtt"
COPIED: Final = {
    "repository.yaml": HERE / "repository.yaml",
    f"{APP}/Dockerfile": HERE / "Dockerfile",
    f"{APP}/apparmor.txt": HERE / "apparmor.txt",
    f"{APP}/translations/en.yaml": HERE / "translations" / "en.yaml",
    f"{APP}/README.md": HERE / "README.md",
    f"{APP}/DOCS.md": HERE / "DOCS.md",
    f"{APP}/CHANGELOG.md": ROOT / "CHANGELOG.md",
    **{f"{APP}/starter/{file.name}": file for file in sorted((HERE / "starter").glob("*.py"))},
}
"""Each file of the repository that is copied from here, with the version filled in."""
MADE: Final = re.compile(rf"{APP}/(config\.yaml|icon\.png|logo\.png|{APP}-[^/]+\.whl|starter/\w+\.py)")
_VERSION: Final = re.compile(r"\bVERSION\b")
_REGISTRY: Final = re.compile(r"localhost|[a-z0-9-]+(\.[a-z0-9-]+)+")
_PART: Final = re.compile(r"[a-z0-9{][a-z0-9.\-_{}]*")


class WritingError(Exception):
    """The repository cannot be written; the text says why, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the repository; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="home-assistant-app", description="Write a repository with the app for Home Assistant."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty folder, or one written before")
    parser.add_argument(
        "--image",
        type=_image,
        metavar="NAME",
        help="a published image, such as registry.example.com/you/dexcom2mqtt; without it, Home Assistant builds one",
    )
    given = parser.parse_args(arguments)
    try:
        write(given.folder, given.image)
    except (WritingError, OSError) as error:
        print(f"home-assistant-app: {error}", file=sys.stderr)
        return 1
    print(f"Written. Copy {given.folder / APP} into the folder addons of Home Assistant; its DOCS.md says how.")
    return 0


def write(folder: Path, image: str | None = None) -> None:
    """Write the repository into a folder. Raises WritingError and OSError."""
    if strange := next(_strange(folder), None):
        raise WritingError(f"{folder} contains something else ({strange}); name a new or empty folder")
    with tempfile.TemporaryDirectory() as place:
        wheel = _wheel(Path(place))
        for old in _files(folder):
            (folder / old).unlink()
        for name, content in _contents(image):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        shutil.copyfile(wheel, folder / APP / wheel.name)


def _contents(image: str | None) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file except the package."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    published = f"image: {image}\n" if image else ""
    yield f"{APP}/config.yaml", _filled(HERE / "app.yaml", version) + published.encode()
    for name, template in COPIED.items():
        yield name, _filled(template, version)
    yield f"{APP}/icon.png", pictures.icon()
    yield f"{APP}/logo.png", pictures.logo()


def _filled(template: Path, version: str) -> bytes:
    return _VERSION.sub(version, template.read_text(encoding="utf-8")).encode()


def _files(folder: Path) -> Iterator[str]:
    """Yield the path of each file, except those of Git."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_dir() and not name.startswith(".git"):
            yield name


def _strange(folder: Path) -> Iterator[str]:
    """Yield each file that this script did not write."""
    if folder.exists() and not folder.is_dir():
        raise WritingError(f"{folder} is a file; name a folder")
    yield from (name for name in _files(folder) if name not in COPIED and not MADE.fullmatch(name))


def _wheel(place: Path) -> Path:
    """Build the package; return the path of the wheel."""
    try:
        venv.create(place / "venv", with_pip=True)
    except subprocess.CalledProcessError:
        raise WritingError("Python has no venv; install it, for example with: sudo apt install python3-venv") from None
    python = next(file for name in ("bin/python", "Scripts/python.exe") if (file := place / "venv" / name).exists())
    command = [str(python), "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    built = subprocess.run(  # noqa: S603  # our own pip
        [*command, f"--wheel-dir={place}", str(ROOT)], capture_output=True, text=True, check=False
    )
    if built.returncode:
        last = (built.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise WritingError(f"the package cannot be built: {last}")
    return next(place.glob(f"{APP}-*.whl"))


def _image(name: str) -> str:
    """Check the name of an image by Home Assistant's rules. It has no version: Home Assistant adds that itself."""
    first, slash, rest = name.partition("/")
    path = rest if slash and ("." in first or ":" in first or first == "localhost") else name
    registry = first.partition(":")[0] if path == rest else "localhost"
    if ":" in path or not _REGISTRY.fullmatch(registry) or not all(map(_PART.fullmatch, path.split("/"))):
        raise argparse.ArgumentTypeError(
            f"{name!r} must look like registry.example.com/you/dexcom2mqtt: lowercase, without a tag"
        )
    return name


if __name__ == "__main__":
    sys.exit(main())
