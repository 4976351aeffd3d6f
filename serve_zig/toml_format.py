"""Values and keys written as TOML: for ``--check``, for the documents and inside messages."""

from __future__ import annotations

import re

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SHOWN_CHARACTERS_MAX = 80


def string(text: str) -> str:
    """Return ``text`` as a basic string on one line."""
    return '"' + "".join(_ESCAPES.get(one) or _visible(one) for one in text) + '"'


def strings(texts: list[str]) -> str:
    """Return ``texts`` as an array on one line."""
    return "[" + ", ".join(map(string, texts)) + "]"


def number(value: int | float) -> str:
    """Return a finite number; a float keeps its point, so that it stays a float."""
    return repr(value)


def key(name: str) -> str:
    """Return one part of a key path, quoted where TOML wants it."""
    return name if _BARE_KEY.fullmatch(name) else string(name)


def describe(value: object) -> str:
    """Return what a user is told to have written: the type, and the value where it is short."""
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int):
        return f"the integer {value}" if abs(value) < 10**20 else "an integer beyond 64 bits"
    if isinstance(value, float):
        return f"the number {value!r}"
    if isinstance(value, str):
        if len(value) > _SHOWN_CHARACTERS_MAX:
            return f"the string {string(value[:_SHOWN_CHARACTERS_MAX])}..."
        return f"the string {string(value)}"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    if isinstance(value, dict):
        return "a table"
    return "a date or time"


def _visible(character: str) -> str:
    code = ord(character)
    if character.isprintable() and not 0xD800 <= code <= 0xDFFF:
        return character
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


def printable(text: str) -> str:
    """Return ``text`` on one line, with what cannot be printed written as escapes."""
    return "".join(_ESCAPES.get(one, one) if one in "\n\r\t" else _visible(one) for one in text)
