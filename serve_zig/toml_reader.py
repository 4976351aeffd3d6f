"""A TOML file read, and what its reader found wrong told as a user can mend it."""

from __future__ import annotations

import re

import tomli

from serve_zig import toml_format
from serve_zig.errors import ConfigError
from serve_zig.toml_location import line_of

# How the reader ends its messages, and begins them where something is there twice.
_AT_LINE = re.compile(r"^(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)$", re.DOTALL)
_TWICE = re.compile(
    r"^Cannot (?:declare|redefine namespace|mutate immutable namespace) \((.*?),?\)"
)
_OVERWRITTEN = "Cannot overwrite a value"
_NAME = re.compile(r"'([^']*)'|\"([^\"]*)\"")

_HEADER = re.compile(r"^\s*\[([^\[\]]+)\]\s*(?:#.*)?$")
_ANY_HEADER = re.compile(r"^\s*\[\[?([^\[\]]+)\]")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.-]+)\s*=")

_FOREIGN = {
    ".py": "a Python file, such as gunicorn's config",
    ".ini": "an INI file, such as uWSGI's config",
}
_NO_TOML = (".yaml", ".yml", ".json")


def parse(file: str, text: str) -> dict[str, object]:
    """Return the tables of a TOML file; raise ConfigError."""
    try:
        tables: dict[str, object] = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        _refuse_foreign(file)
        raise ConfigError(_explain(file, text, error)) from None
    except RecursionError:
        raise ConfigError(f"{file}: not valid TOML: nested too deeply; make it flat") from None
    except ValueError as error:
        # An integer of thousands of digits, which Python does not read.
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    # A gunicorn.conf.py of plain assignments is valid TOML by chance.
    if "app" not in tables:
        _refuse_foreign(file)
    return tables


def message_of(error: tomli.TOMLDecodeError) -> tuple[str, int | None, int | None]:
    """Return what is wrong, and at which line and column as far as the error tells.

    Its attributes are there from tomli 2.1 on; another reader's error may have none.
    """
    text = str(error)
    match = _AT_LINE.match(text)
    what = getattr(error, "msg", None) or (match[1] if match else text)
    line = getattr(error, "lineno", None) or _number(match and match[2])
    column = getattr(error, "colno", None) or _number(match and match[3])
    return str(what), line, column


def _number(text: str | None) -> int | None:
    return int(text) if text else None


def _refuse_foreign(file: str) -> None:
    lowered = file.lower()
    for suffix, what in _FOREIGN.items():
        if lowered.endswith(suffix):
            raise ConfigError(
                f"{file}: {what}; serve-zig reads TOML, and makes it from this file: serve-zig "
                f"migrate {file} > serve.toml"
            )
    if lowered.endswith(_NO_TOML):
        raise ConfigError(
            f"{file}: not valid TOML, which serve-zig reads; serve-zig init writes a serve.toml"
        )


def _explain(file: str, text: str, error: tomli.TOMLDecodeError) -> str:
    what, line, column = message_of(error)
    place = ":".join(str(part) for part in (file, line, column) if part is not None)
    # The reader stands behind the statement, perhaps on the next line.
    twice = _TWICE.match(what)
    if twice and line is not None:
        path = tuple(first or second for first, second in _NAME.findall(twice[1]))
        return f"{place}: not valid TOML: {_said_twice(text, path, line, is_table=True)}"
    if what == _OVERWRITTEN and line is not None:
        known = _key_at(text, line)
        if known:
            return f"{place}: not valid TOML: {_said_twice(text, known, line, is_table=False)}"
    return f"{place}: not valid TOML: {what}; mend this line"


def _said_twice(text: str, path: tuple[str, ...], line: int, *, is_table: bool) -> str:
    name = ".".join(map(toml_format.key, path))
    before = "".join(text.splitlines(keepends=True)[: line - 1])
    first = line_of(before, path)
    since = f", first at line {first}" if first is not None else ""
    if is_table:
        return f"[{name}] is declared twice{since}; put all its keys below one of them"
    return f"{name} is given twice{since}; remove one"


def _key_at(text: str, line: int) -> tuple[str, ...]:
    """Return the path of the key or table that a line gives; empty where it gives none."""
    lines = text.splitlines()[:line]
    own_header = _ANY_HEADER.match(lines[-1]) if lines else None
    if own_header:
        return tuple(part.strip() for part in own_header[1].split("."))
    match = _KEY.match(lines[-1]) if lines else None
    if match is None:
        return ()
    headers = (_HEADER.match(one) for one in reversed(lines))
    header = next((found[1] for found in headers if found), "")
    parts = [part.strip() for part in header.split(".")] if header else []
    return (*parts, *match[1].split("."))
