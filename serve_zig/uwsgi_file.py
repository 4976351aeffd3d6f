"""A uwsgi.ini or uWSGI's command line, read into options in order.

An option may come several times, with dashes or underscores, with or without a value. ``%(name)``
is an option given before or a placeholder, ``$(NAME)`` an environment variable, ``%d`` and the like
are parts of the file's own path (uWSGI's documentation, "Configuring uWSGI").
"""

from __future__ import annotations

import os
import re

from serve_zig.errors import ConfigError
from serve_zig.interpolation import escape
from serve_zig.migration import Template, Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# In an argument vector: the options of one letter that are in use.
_LETTERS = {
    "C": "chmod-socket",
    "H": "home",
    "L": "disable-logging",
    "M": "master",
    "R": "max-requests",
    "S": "set",
    "T": "enable-threads",
    "b": "buffer-size",
    "d": "daemonize",
    "i": "single-interpreter",
    "l": "listen",
    "m": "memory-report",
    "p": "processes",
    "s": "socket",
    "t": "harakiri",
    "w": "module",
    "z": "socket-timeout",
}

# Options that stand alone on a command line; the others take what follows, unless it is an option.
_ALONE = frozenset(
    {
        "auto-procname",
        "catch-exceptions",
        "die-on-term",
        "disable-logging",
        "disable-write-exception",
        "enable-proxy-protocol",
        "enable-threads",
        "http-auto-chunked",
        "http-auto-gzip",
        "http-chunked-input",
        "http-raw-body",
        "ignore-sigpipe",
        "ignore-write-errors",
        "lazy",
        "lazy-apps",
        "log-master",
        "log-x-forwarded-for",
        "manage-script-name",
        "master",
        "memory-report",
        "need-app",
        "no-orphans",
        "reuse-port",
        "show-config",
        "single-interpreter",
        "skip-atexit",
        "so-keepalive",
        "stats-http",
        "strict",
        "tcp-nodelay",
        "thunder-lock",
        "vacuum",
        "wsgi-disable-file-wrapper",
        "wsgi-manage-chunked-input",
    }
)

LOGIC = re.compile(
    r"(?:if(?:-.+|env|exists|plugin|dir)?|for(?:-.+)?|end-?(?:if|for)|(?:end-)?(?:black|white)list)"
)
"""The options that decide whether those after them are set."""

_MAGIC = re.compile(r"%\(([^)]*)\)|\$\(([^)]*)\)|@\(([^)]*)\)|%([a-zA-Z%])")


class Options:
    """Options in order. ``referred`` are the names that other values are made of."""

    __slots__ = ("given", "referred")

    def __init__(self) -> None:
        self.given: list[tuple[str, object]] = []
        self.referred: set[str] = set()

    def add(self, more: Options) -> None:
        """Take in the options of a further file."""
        self.given += more.given
        self.referred |= more.referred


def read_ini(file: str) -> Options:
    """Return the options of the section [uwsgi]; raise ConfigError."""
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as stream:
            lines = stream.read().splitlines()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"{file}: cannot be read ({reason}); name the config file") from None
    section = ""
    given: list[tuple[str, str]] = []
    for line in lines:
        text = line.strip()
        if not text or text[0] in ";#":
            continue
        if text.startswith("["):
            section = text.strip("[]")
            continue
        name, equals, value = text.partition("=")
        if section == "uwsgi":
            given.append((name.strip(), value.strip() if equals else "true"))
    if not given:
        raise ConfigError(f"{file}: no options in a section [uwsgi]; name a uwsgi.ini")
    return expand(given, os.path.abspath(file))


def read_command_line(arguments: Sequence[str]) -> Options:
    """Return the options of uWSGI's own arguments, those of the files that they name included."""
    options = Options()
    given: list[tuple[str, str]] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        if not argument.startswith("-"):
            options.add(_of_file(argument))
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("--"):
            name, equals, value = _LETTERS.get(argument[1:2], argument[1:2]), "", argument[2:]
            equals = "=" if value else ""
        name = name.replace("_", "-")
        if not equals:
            is_next_a_value = bool(pending) and not pending[0].startswith("-")
            takes = name not in _ALONE and is_next_a_value
            value = pending.pop(0) if takes else "true"
        if name in ("ini", "config"):
            options.add(_of_file(value))
        else:
            given.append((name, value))
    options.add(expand(given, ""))
    return options


def _of_file(name: str) -> Options:
    if not name.endswith((".ini", ".conf", ".cfg")):
        raise ConfigError(f'"{name}" is neither an option of uWSGI nor an ini file')
    return read_ini(name)


def expand(given: Sequence[tuple[str, str]], file: str) -> Options:
    """Return the options with what their values refer to put in."""
    known: dict[str, str] = {}
    options = Options()
    depth = 0
    for raw_name, raw in given:
        name = raw_name.replace("_", "-").lower()
        if LOGIC.fullmatch(name):
            # What stands in between may or may not be set.
            depth += -1 if name.startswith("end") else 1
            if not name.startswith("end"):
                options.given.append((name, raw))
            continue
        value = _expand_one(raw, known, file, options.referred)
        if name in ("set", "set-placeholder", "set-ph") and isinstance(value, str):
            placeholder, _, content = value.partition("=")
            known[placeholder.strip()] = content.strip()
            if name != "set":
                continue
            name, value = placeholder.strip().replace("_", "-"), content.strip()
        if isinstance(value, str):
            known[raw_name] = value
        options.given.append((name, Unknown(raw) if depth > 0 else value))
    return options


def _expand_one(raw: str, known: dict[str, str], file: str, referred: set[str]) -> object:
    """Return the value with its references put in: a text, a Template or Unknown."""
    parts: list[str] = []
    is_template = "$(" in raw
    position = 0
    for match in _MAGIC.finditer(raw):
        parts.append(_literal(raw[position : match.start()], is_template))
        position = match.end()
        placeholder, variable, letter = match[1], match[2], match[4]
        if variable is not None and variable.isidentifier():
            parts.append(f"${{{variable}}}")
            continue
        if placeholder is not None:
            referred.add(placeholder.replace("_", "-"))
            text = known.get(placeholder)
        else:
            text = _magic(letter, file)
        if text is None:
            return Unknown(raw)
        parts.append(_literal(text, is_template))
    parts.append(_literal(raw[position:], is_template))
    return Template("".join(parts)) if is_template else "".join(parts)


def _literal(text: str, is_template: bool) -> str:
    return escape(text) if is_template else text


def _magic(letter: str | None, file: str) -> str | None:
    """Return what %d, %p and the like stand for; None for those that are not known."""
    if letter == "%":
        return "%"
    folder, name = os.path.split(file)
    magic = {
        "p": file,
        "d": f"{folder}/",
        "s": name,
        "n": os.path.splitext(name)[0],
        "e": os.path.splitext(name)[1].removeprefix("."),
        "c": os.path.basename(folder),
    }
    return magic.get(letter or "") if file else None
