"""The page that explains the messages, compared with the code that writes them.

The first column of the page's tables quotes them, each in a code span: any searchable piece of a message, with … for
variable parts.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dexcom2mqtt
from dexcom2mqtt.messages import status
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = ROOT / "docs" / "troubleshooting.md"
MODULES: Final = sorted(Path(dexcom2mqtt.__file__).parent.rglob("*.py"))

CALLS: Final = {
    *("warning", "error", "critical"),  # of a logger
    *("Failure", "BrokerError", "PurgeError", "TlsFileError", "VariableError", "ConfigError"),
    *("UnavailableError", "CredentialsRejectedError", "LockedOutError", "RateLimitedError", "UnexpectedResponseError"),
    *("_fail", "Step", "print", "append"),
}
"""Callables that get a message for a person, in their arguments or in a name among these."""
FUNCTIONS: Final = {
    "explain",
    "_describe",
    "_description",
    "_proxy_failure",
    "ask",
    "look",
    "exposed",
    "password_warning",
    "warnings",
    *("_look", "_parsed", "_judged", "_exposed", "_no_account", "_not_for_the_folder", "shard_conflict"),
    "_found",
    "_unaccepted",
    "_unwelcome",
}
"""Functions whose texts are all such messages."""
NO_TROUBLE: Final = (
    *(
        "Valid. Accounts:",
        "The rest is valid.",
        "… accounts.",
        "Signed in to",
        "Sharing is on. The",
        "clock agrees with",
        "All is well.",
    ),
    *(
        "It accepts messages as large as",
        "accepts connections at",
        "It speaks MQTT",
        "is allowed.",
        "Home Assistant is online,",
    ),
    *(
        "our user name and password",
        "us without a user name",
        "Its certificate (…) was issued by",
        "as fast as the real one",
    ),
    *("The page can be served at", "A running daemon serves the page at", "the page for a browser:"),
    *("a simulated Share service:", "an embedded MQTT broker:", "earlier readings"),
    *("the file …", "next poll …", "… min ago", "the password ……"),
    *("Waiting for the first answer from Share", "Readings arrive"),
    *(
        "ahead of",
        "sudo chown",
        "fix it with: chmod",
        "Make sure this machine can reach a time server",
    ),  # parts of other messages, with the remedy
)
"""Pieces of messages that report no trouble, or that say themselves what to do."""
SENTENCE: Final = re.compile(r"[a-z]{2,}[ ,:]+[a-z]{2,}")


def template(node: ast.expr) -> str:
    """Return a text in the code with … for variable parts; empty if the node is not a text."""
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or "…" for part in node.values)
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return re.sub("%[sd]", "…", text)


def texts(node: ast.AST) -> Iterator[str]:
    """Yield every text in a piece of code, each as a whole."""
    if isinstance(node, ast.JoinedStr | ast.Constant):
        yield re.sub(" +", " ", template(node))
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def without_docstring(function: ast.FunctionDef) -> ast.AST:
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return ast.Module(function.body[documented:], [])


def said_in(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the messages for a person in a function."""
    body = without_docstring(function)
    if function.name in FUNCTIONS:
        yield from texts(body)
    for call in ast.walk(body):
        if isinstance(call, ast.Call) and call_name(call) in CALLS:
            for argument in call.args:
                yield from texts(argument)
                names = {name.id for name in ast.walk(argument) if isinstance(name, ast.Name)}
                for node in ast.walk(body):
                    if isinstance(node, ast.Assign) and names & {ast.unparse(target) for target in node.targets}:
                        yield from texts(node.value)


def call_name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)


def functions() -> Iterator[ast.FunctionDef]:
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and module.name != "share_service.py":
                yield node


def messages() -> set[str]:
    """Return every message in the code that reports trouble."""
    states = ast.parse(Path(status.__file__).read_text(encoding="utf-8")).body
    found = {text for node in states if isinstance(node, ast.AnnAssign) and node.value for text in texts(node.value)}
    found |= {text for function in functions() for text in said_in(function)}
    return {text for text in found if SENTENCE.search(text) and not any(piece in text for piece in NO_TROUBLE)}


def quotes() -> list[str]:
    """Return the quotes on the page."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [quote for row in rows for quote in re.findall("`([^`]+)`", row.split(" | ")[0])]


def test_every_message_is_explained() -> None:
    """The page quotes each message that reports trouble, and each status of an account."""
    quoted = quotes()
    assert not sorted(text for text in messages() if not any(quote in text for quote in quoted))
    assert set(status.REMEDIES) - {"ok", "starting"} <= set(quoted)


def test_every_quote_is_a_message() -> None:
    """Each quote on the page is in the code, and long enough to search for."""
    code = {text for module in MODULES for text in texts(ast.parse(module.read_text(encoding="utf-8")))}
    assert not [quote for quote in quotes() if not any(quote in text for text in code)]
    assert not [quote for quote in quotes() if len(quote) < 7]


def test_every_quote_is_explained_once() -> None:
    """Nothing is quoted twice, so that a search finds one place."""
    quoted = quotes()
    assert sorted(quoted) == sorted(set(quoted))
