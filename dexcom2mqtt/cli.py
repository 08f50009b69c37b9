"""The command line: commands, exit codes.

Each command imports what it needs when it runs, so that a small one starts fast on a Raspberry Pi.
"""

from __future__ import annotations

import argparse
import errno
import gc
import io
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dexcom2mqtt.commands.check import Step
    from dexcom2mqtt.config.settings import Settings

FAILED: Final = 1
MISCONFIGURED: Final = 78  # EX_CONFIG of sysexits.h

_NARROW: Final = 40
"""Columns below which nothing is wrapped any narrower."""
_LEVELS: Final = ("debug", "info", "warning", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 failed, 78 a problem in the configuration. Usage ends with 2."""
    # The options are taken before and after the command; a default of theirs would overwrite what came before it.
    given = _parser().parse_args(arguments, argparse.Namespace(command="run", config=None, log_level=None))
    commands = {
        "run": _run,
        "check": _check,
        "demo": _demo,
        "healthcheck": _healthcheck,
        "purge": _purge,
        "schema": _schema,
    }
    # They are None where the program was started with them closed.
    sys.stdout, sys.stderr = (stream or io.StringIO() for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # where it cannot take an arrow, it gets a question mark
            stream.reconfigure(errors="replace")
    try:
        code = commands[given.command](given)
    except KeyboardInterrupt:
        code = _fail("interrupted")
    except BrokenPipeError:
        code = FAILED
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in {errno.EPIPE, errno.EIO}:
            raise
        # Nobody reads any more, as behind `| head -1`, or where the terminal is gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help="the configuration; else $DEXCOM2MQTT_CONFIG, ./config.yaml, /etc/dexcom2mqtt/config.yaml",
    )
    common.add_argument("--log-level", choices=_LEVELS, help="how much is logged, in place of the configuration's")
    parser = argparse.ArgumentParser(
        prog="dexcom2mqtt", description="Bring glucose readings from Dexcom Share to MQTT.", parents=[common]
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    # Named, since argparse would load what measures a terminal to find it out.
    commands = parser.add_subparsers(prog="dexcom2mqtt", metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[common])
        command.set_defaults(command=name)
        return command

    add("run", "poll and publish, in the foreground, until SIGTERM or SIGINT (the default)")
    add("check", "try everything once (configuration, accounts, broker), and say what to do where it does not work")
    demo = add("demo", "see it work with no account and no broker: everything simulated, on this machine alone")
    demo.add_argument("--speed", type=_speed, default=60.0, metavar="N", help="how many times faster (default 60)")
    demo.add_argument("--duration", type=_duration, metavar="S", help="end after that many real seconds")
    demo.add_argument("--mqtt-port", type=_port, default=0, metavar="P", help="the broker's port (default a free one)")
    add("healthcheck", "ask the daemon that runs on this machine whether its loops are alive; needs no secret")
    purge = add("purge", "remove from the broker what the daemon left there: every retained message, discovery too")
    purge.add_argument("--account", type=_account, metavar="NAME", help="only those of this account")
    purge.add_argument(
        "--base-topic", type=_topic, metavar="TOPIC", help="a base topic of the past, in place of the configuration's"
    )
    purge.add_argument("--discovery-prefix", type=_topic, metavar="TOPIC", help="a prefix of the past, likewise")
    add("schema", "print the JSON Schema of the configuration, for editors")
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version())
        parser.exit()


def _number(text: str, least: float, most: float) -> float:
    number = float(text)
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
    return number


def _speed(text: str) -> float:
    return _number(text, 0.1, 3600)


def _duration(text: str) -> float:
    return _number(text, 0, 1e9)


def _port(text: str) -> int:
    return int(_number(text, 0, 65535))


def _account(text: str) -> str:
    from dexcom2mqtt.topics import ACCOUNT_KEY  # noqa: PLC0415  # only what a command needs

    return _matching(text, ACCOUNT_KEY, "is no account's key")


def _topic(text: str) -> str:
    from dexcom2mqtt.topics import TOPIC  # noqa: PLC0415  # only what a command needs

    return _matching(text, TOPIC, "is no topic of letters, digits, _ and -, in levels separated by /")


def _matching(text: str, pattern: str, otherwise: str) -> str:
    if not re.fullmatch(pattern, text):
        raise argparse.ArgumentTypeError(f"{text!r} {otherwise}")
    return text


def _run(given: argparse.Namespace) -> int:
    # Before anything that takes time: a stop during the start is a stop, too.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    gc.disable()  # what is loaded stays: looking for garbage in it would take a fifth of the start
    settings = _load(given)
    if settings is None:
        return MISCONFIGURED
    # First: Python 3.11 takes far longer to compile the patterns of its libraries when more calls are below them.
    from dexcom2mqtt.share.errors import VariableError  # noqa: I001, PLC0415
    from dexcom2mqtt import threads  # noqa: PLC0415
    from dexcom2mqtt.daemon import process  # noqa: PLC0415  # only what a command needs
    from dexcom2mqtt.mqtt import tls_files  # noqa: PLC0415

    gc.freeze()  # nor does it have to be looked at later
    gc.enable()
    try:
        code = process.run(settings)
    except (tls_files.TlsFileError, VariableError) as error:
        return _complain([str(error)])
    except (process.SecondDaemonError, threads.ThreadError) as error:
        code = _fail(str(error))
    # The threads are still there, some perhaps inside a call that hangs: waiting for none of them, and letting
    # none run while the interpreter is taken apart, is what ends the process in time and with this code.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _check(given: argparse.Namespace) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):  # nothing is to be left at the broker
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    settings = _load(given)
    if settings is None:
        return MISCONFIGURED
    from dexcom2mqtt.clock import Clock  # noqa: PLC0415
    from dexcom2mqtt.commands import check  # noqa: PLC0415  # only what a command needs
    from dexcom2mqtt.mqtt import tls_files  # noqa: PLC0415
    from dexcom2mqtt.share.errors import VariableError  # noqa: PLC0415

    failed = 0
    try:
        for step in check.check(settings, Clock()):
            failed += step.verdict == "failed"
            _print_step(step)
    except (tls_files.TlsFileError, VariableError) as error:
        return _complain([str(error)])
    if failed:
        return _fail(f"{failed} failed; see above for what to do")
    print("All is well.")
    return 0


def _print_step(step: Step) -> None:
    """Print a step, and what to do about it below, no wider than the terminal."""
    import shutil  # noqa: PLC0415  # only what a command needs
    import textwrap  # noqa: PLC0415

    width = max(shutil.get_terminal_size().columns, _NARROW)

    def fill(first: str, text: str) -> str:
        return textwrap.fill(
            text, width, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
        )

    verdict = {"ok": "ok", "note": "note", "failed": "FAILED"}[step.verdict]
    print(fill(f"{verdict:<8}", f"{step.of}: {step.text}"))
    for number, remedy in enumerate(step.remedies, 1):
        print(fill(f"{'':8}{number}. ", remedy))
    sys.stdout.flush()


def _demo(given: argparse.Namespace) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # the imports take time
    from dexcom2mqtt.logs import set_up_logging  # noqa: PLC0415

    set_up_logging(given.log_level or "warning")
    try:
        from dexcom2mqtt.demo import app  # noqa: PLC0415  # its libraries come with an extra
    except ImportError as error:
        pip = Path(sys.executable).parent / "pip"
        return _fail(f"the demo needs {error.name}; in the clone, install the extra demo: {pip} install '.[demo]'")
    return app.run(speed=given.speed, duration=given.duration, mqtt_port=given.mqtt_port)


def _healthcheck(given: argparse.Namespace) -> int:
    from dexcom2mqtt.config.naming import client_id  # noqa: PLC0415
    from dexcom2mqtt.config.problems import ConfigError  # noqa: PLC0415  # only what a command needs
    from dexcom2mqtt.daemon.asking import HEALTHY, ask  # noqa: PLC0415

    try:
        answer = ask(client_id(given.config))
    except ConfigError as error:
        return _complain(error.problems)
    if answer != HEALTHY:
        return _fail(answer)
    print(answer)
    return 0


def _purge(given: argparse.Namespace) -> int:
    settings = _load(given)
    if settings is None:
        return MISCONFIGURED
    from dexcom2mqtt.clock import Clock  # noqa: PLC0415
    from dexcom2mqtt.commands import purge  # noqa: PLC0415  # only what a command needs
    from dexcom2mqtt.daemon.asking import broker_of  # noqa: PLC0415
    from dexcom2mqtt.mqtt import dialling, tls_files  # noqa: PLC0415

    name = settings.mqtt.client_id
    if broker_of(name) is not None:
        return _fail(
            f"a daemon with the mqtt.client_id {name} runs on this machine: stop it first, for it would publish it all "
            "again"
        )

    try:
        print(
            purge.purge(
                settings,
                Clock(),
                account=given.account,
                base_topic=given.base_topic,
                discovery_prefix=given.discovery_prefix,
            )
        )
    except tls_files.TlsFileError as error:
        return _complain([str(error)])
    except (dialling.BrokerError, purge.PurgeError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted: some may be left; run it again")
    return 0


def _schema(_given: argparse.Namespace) -> int:
    from dexcom2mqtt.config.editors import schema  # noqa: PLC0415  # only what a command needs

    print(schema())
    return 0


def _load(given: argparse.Namespace) -> Settings | None:
    """Read the configuration and set up logging; None, and every problem on standard error, where it is no good."""
    import logging  # noqa: PLC0415

    from dexcom2mqtt.config.loading import load  # noqa: PLC0415  # only what a command needs
    from dexcom2mqtt.config.problems import ConfigError  # noqa: PLC0415
    from dexcom2mqtt.logs import set_up_logging  # noqa: PLC0415

    try:
        settings = load(given.config)
    except ConfigError as error:
        _complain(error.problems)
        return None
    set_up_logging(given.log_level or settings.log_level)
    for warning in settings.warnings:
        logging.getLogger("dexcom2mqtt").warning("%s", warning)
    return settings


def _fail(why: str) -> int:
    print(f"dexcom2mqtt: {why}", file=sys.stderr)
    return FAILED


def _complain(problems: Sequence[str]) -> int:
    print("dexcom2mqtt: the configuration cannot be used:", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    return MISCONFIGURED
