"""The line of a TOML file on which a key stands, which the TOML reader does not tell."""

from __future__ import annotations

import tomli

_LINES_MAX = 2000


def line_of(text: str, path: tuple[str, ...]) -> int | None:
    """Return the line, counted from 1, of the key or table ``path``, or None where it is unknown.

    A number in the path, counted from 0, stands for one of several tables of a name.

    ``text`` must be valid TOML. A statement ends where the lines so far are valid for the first
    time again, so the reader itself finds the statement that brought the key: no second grammar is
    needed. That reads the text many times over, which only the report of a mistake has to pay,
    and only for a file of a reasonable length.
    """
    lines = text.splitlines(keepends=True)
    if len(lines) > _LINES_MAX:
        return None
    statement_start = 1
    for count in range(1, len(lines) + 1):
        try:
            table: object = tomli.loads("".join(lines[:count]))
        except tomli.TOMLDecodeError:
            continue
        if _holds(table, path):
            return statement_start
        statement_start = count + 1
    return None


def _holds(value: object, path: tuple[str, ...]) -> bool:
    if not path:
        return True
    if isinstance(value, list) and path[0].isdecimal():
        index = int(path[0])
        return index < len(value) and _holds(value[index], path[1:])
    if isinstance(value, list):
        return any(_holds(item, path) for item in value)
    return isinstance(value, dict) and path[0] in value and _holds(value[path[0]], path[1:])
