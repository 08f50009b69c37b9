"""The documents as seen by tests: their code blocks, why some are not run, their links, headings and tables."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCUMENTS: Final = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "examples/**/README.md", "home-assistant-app/DOCS.md")
    for path in ROOT.glob(pattern)
)

REASONS: Final = {
    "e2e": r"e2e (\w+)",  # that part of .ci/run runs it, in a separate Debian
    "ci": r"ci",  # .ci/run runs it
    "test": r"(tests/[\w/]+\.py)",  # that test does the same
    "drawing": r"drawing",  # nothing to run
    "hardware": r"needs a (Raspberry Pi|sensor)",
    "other system": r"needs (openHAB|ioBroker|Home Assistant|Node-RED|Kubernetes)",
}
"""Why a block may not be run here: `<!-- not run here: e2e systemd -->` in the line above it."""

PROBLEM: Final = "a problem"
"""`<!-- a problem -->` above a configuration: loading it must fail."""

WITHOUT_FILE: Final = "without a file"
"""`<!-- without a file -->` above commands: there is no configuration file when they run."""

_FENCE: Final = re.compile(
    r"(?:^[ ]*<!-- (?P<note>[^\n]*?) -->\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_NOT_RUN: Final = "not run here: "


@dataclass(frozen=True)
class Block:
    """A fenced block of code; ``note`` is the comment in the line above it, which readers do not see."""

    document: str
    line: int
    language: str
    text: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def reason(self) -> tuple[str, str] | None:
        """Return why it is not run here: one of the REASONS, and the name given with it."""
        for name, pattern in REASONS.items():
            if match := re.fullmatch(_NOT_RUN + pattern, self.note):
                return name, (match.groups() or ("",))[0]
        return None

    @property
    def runs(self) -> bool:
        return not self.note.startswith(_NOT_RUN)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks_of(document: str, text: str | None = None) -> list[Block]:
    """List the blocks of a document, in their order."""
    text = text_of(document) if text is None else text
    return [
        Block(
            document,
            text[: match.start("language")].count("\n") + 1,
            match["language"].strip(),
            textwrap.dedent(match["text"]),
            match["note"] or "",
        )
        for match in _FENCE.finditer(text)
    ]


def every_block(*languages: str) -> list[Block]:
    """List the blocks of all documents that are to be run, in these languages."""
    every = [block for document in DOCUMENTS for block in blocks_of(document)]
    return [block for block in every if block.runs and block.language in languages]


def prose_of(text: str) -> str:
    """Return a document without its blocks and without inline code."""
    return re.sub(r"`[^`\n]+`", "", without_blocks(text))


def without_blocks(text: str) -> str:
    """Return a document without its blocks."""
    return _FENCE.sub("", text)


def links_of(text: str) -> list[str]:
    """List the targets of the links and pictures in a text."""
    return re.findall(r"\]\(([^)\s]+)\)", prose_of(text))


def anchors_of(text: str) -> set[str]:
    """Return the anchors in a text, and those that Markdown viewers make from the headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    own = re.findall(r'<a id="([\w-]+)"></a>', text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(own)


def section_of(text: str, heading: str) -> str:
    """Return the text under a heading, up to the next one of its rank or above."""
    rank = heading.index(" ")
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"(?m)^#{{1,{rank}}} ", rest)[0]


def rows_of(text: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the tables in a text, without the header rows."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        is_head = "|---" in line or "|---" in "".join(lines[number + 1 : number + 2])
        if line.startswith("|") and not is_head:
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def codes_in(text: str) -> list[str]:
    """List the inline code in a text without blocks, such as a cell."""
    return re.findall(r"`([^`]+)`", text)


def files_of_the_project() -> list[Path]:
    """List all text files of the project."""
    ours = (".ci", "bench", "deploy", "dexcom2mqtt", "docs", "examples", "home-assistant-app", "scripts", "systemd")
    found = [path for folder in (*ours, "tests") for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("[!.]*"))
    return [path for path in found if path.is_file() and path.suffix in _TEXT and "__pycache__" not in path.parts]


_TEXT: Final = {".md", ".py", ".yaml", ".yml", ".toml", ".json", ".service", ".txt", ""}
