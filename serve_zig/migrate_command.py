"""``serve-zig migrate``: another server's configuration as a serve.toml, on stdout."""

from __future__ import annotations

import argparse
import os
import re
import sys

from serve_zig import discovery, gunicorn_file, gunicorn_settings, uwsgi_file, uwsgi_settings
from serve_zig.errors import EXIT_DRAINED, ConfigError
from serve_zig.migration import Document, Template
from serve_zig.target import TargetError, parse_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PLACEHOLDER = "module:application"
_GUNICORN_FILE = "gunicorn.conf.py"

# $NAME and ${NAME}, as a Dockerfile's or Procfile's command has them.
_SHELL_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*(?::-[^}$]*)?)\})")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*")


def main(arguments: Sequence[str]) -> int:
    """Run ``serve-zig migrate`` and return the exit status. Raises ConfigError."""
    options = _parse(arguments)
    document = _migrate(options.source, options.execute)
    _complete(document, options.target)
    sys.stdout.buffer.write(document.to_toml().encode("utf-8"))
    sys.stdout.flush()
    return EXIT_DRAINED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="serve-zig migrate",
        usage="serve-zig migrate [--target TARGET] [--execute] SOURCE [ARGUMENT ...]",
        description="Print the serve.toml that does the same as another server's configuration, "
        "with a comment for each setting that has no counterpart. SOURCE is a gunicorn.conf.py, a "
        "uwsgi.ini, or a command: gunicorn -w 4 app:app.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--target", metavar="TARGET", help='the application, "package.module:callable"'
    )
    parser.add_argument(
        "--execute",
        action="store_true",
        help="execute the gunicorn.conf.py, as gunicorn does, in a process of its own; without it "
        "the file is evaluated as far as that is possible without executing it",
    )
    parser.add_argument("source", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    source = [one for one in options.source if one != "--"]
    if source and source[0].endswith((".py", ".ini")) and len(source) > 1:
        # Options may follow the file, too.
        rest = parser.parse_args(source[1:], argparse.Namespace(**vars(options)))
        options, source = rest, [source[0], *rest.source]
        if len(source) > 1:
            parser.error(f"one file at a time: {' '.join(source)}")
    if not source:
        parser.error("name a gunicorn.conf.py, a uwsgi.ini, or a command")
    if options.target is not None:
        try:
            parse_target(options.target)
        except TargetError as error:
            raise ConfigError(f"--target: {error}") from None
    options.source = source
    return options


def _migrate(source: list[str], is_executed: bool) -> Document:
    first = source[0]
    if first.endswith(".py"):
        settings = _gunicorn_settings(first, is_executed)
        return gunicorn_settings.migrate(settings, first)
    if first.endswith((".ini", ".conf", ".cfg")):
        return uwsgi_settings.migrate(uwsgi_file.read_ini(first), first)
    for position, word in enumerate(source):
        name = os.path.basename(word)
        if name == "gunicorn":
            return _gunicorn_command(source[position + 1 :], is_executed)
        if name == "uwsgi":
            found = uwsgi_file.read_command_line(source[position + 1 :])
            return uwsgi_settings.migrate(found, "a command line of uwsgi")
        # PORT=8000 exec python -m gunicorn ...
        if not (_ASSIGNMENT.fullmatch(word) or word in ("exec", "env", "-m") or "python" in name):
            break
    raise ConfigError(
        f'"{" ".join(source)}" is no gunicorn.conf.py, no uwsgi.ini and no command of gunicorn or '
        "uwsgi"
    )


def _gunicorn_settings(file: str, is_executed: bool) -> dict[str, object]:
    found = gunicorn_file.execute(file) if is_executed else gunicorn_file.evaluate(file)
    # As gunicorn does: any case, and what it does not know is none of its business.
    lowered = {name.lower(): value for name, value in found.items()}
    return {name: value for name, value in lowered.items() if name in gunicorn_settings.OPTIONS}


def _gunicorn_command(arguments: list[str], is_executed: bool) -> Document:
    # Not repeated in the file: -e may have given it secrets.
    origin = "a command line of gunicorn"
    given, rest = gunicorn_settings.parse_command_line(arguments)
    file = str(given.get("config", _GUNICORN_FILE)).removeprefix("file:")
    settings: dict[str, object] = {}
    if "config" in given or os.path.exists(file):
        settings = _gunicorn_settings(file, is_executed)
        origin = f"{origin}, with {file}"
    # The command line counts more than the file.
    settings |= {name: _typed(value) for name, value in given.items()}
    if rest:
        settings["wsgi_app"] = rest[0]
    return gunicorn_settings.migrate(settings, origin)


def _typed(value: object) -> object:
    """Return a value of a command line as a config file would have it."""
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, str) and _SHELL_VARIABLE.search(value):
        return Template(_SHELL_VARIABLE.sub(lambda one: f"${{{one[1] or one[2]}}}", value))
    return value


def _complete(document: Document, target: str | None) -> None:
    """Name the application, where neither the settings nor the user has."""
    if target is not None:
        document.set("app.target", target)
    elif not document.has("app.target"):
        found = discovery.search(os.getcwd()).candidates
        usable = [one for one in found if not one.is_asgi and not one.unusable]
        if usable and (len(usable) == 1 or usable[0].score > usable[1].score):
            best = usable[0]
            document.set(
                "app.target",
                best.target,
                f"Not in the settings; found in {best.file}, line {best.line}.",
            )
            directory = os.path.relpath(best.directory)
            if directory != "." and not document.has("app.directory"):
                document.set("app.directory", directory)
        else:
            document.set(
                "app.target",
                _PLACEHOLDER,
                "Not in the settings: name your application here, or give --target.",
            )
