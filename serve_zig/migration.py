"""The serve.toml that another server's settings become: what ``serve-zig migrate`` fills in.

A document collects values for keys and notes for settings without a counterpart, and writes itself
as TOML that the server loads. What it takes is checked by the kinds of schema.py, so a value that
the server would refuse becomes a note.
"""

from __future__ import annotations

import textwrap

from serve_zig import toml_format
from serve_zig.interpolation import escape
from serve_zig.kinds import Kind, Text, UnsuitableError
from serve_zig.schema import KEYS_BY_PATH, TABLES, keys_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_COLUMNS = 100
_VALUE_CHARACTERS_MAX = 70


class Template:
    """A text that holds environment variables, written as serve.toml writes them."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return self.text


class Unknown:
    """A value that could not be worked out; ``source`` is how it is written."""

    __slots__ = ("source",)

    def __init__(self, source: str) -> None:
        self.source = source

    def __repr__(self) -> str:
        return self.source


class Setting:
    """A setting of the other server. ``name`` is what its users call it."""

    __slots__ = ("name", "value")

    def __init__(self, name: str, value: object) -> None:
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return f"{self.name} = {shown(self.value)}"


def shown(value: object, to_text: Callable[[object], str] = repr) -> str:
    """Return a value as a comment shows it."""
    text = toml_format.printable(" ".join(to_text(value).split()))
    return text if len(text) <= _VALUE_CHARACTERS_MAX else f"{text[:_VALUE_CHARACTERS_MAX]}..."


class _Line:
    __slots__ = ("comments", "value")

    def __init__(self, value: str) -> None:
        self.value = value
        self.comments: list[str] = []


class Document:
    """A serve.toml in the making."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self._lines: dict[str, _Line] = {}
        self._table_comments: dict[str, list[str]] = {}
        self._rows: list[dict[str, str | bool]] = []
        self._row_comments: list[str] = []
        self._notes: list[tuple[str, str]] = []

    def set(self, path: str, value: object, *comments: str) -> bool:
        """Set a key and say why; return False, with a note, where the server would refuse it.

        A later value replaces an earlier one; comments are added.
        """
        key = KEYS_BY_PATH[path]
        if isinstance(value, Unknown):
            self.note(f"{path} = {shown(value)}", "not evaluated; write the value by hand.")
            return False
        try:
            text = _to_toml(key.kind, value)
        except UnsuitableError as error:
            self.note(f"{path} = {shown(value)}", f"serve-zig takes no such value; {error}.")
            return False
        line = self._lines.get(path)
        if line is None:
            line = self._lines[path] = _Line(text)
        line.value = text
        line.comments = list(dict.fromkeys([*line.comments, *comments]))
        return True

    def drop(self, path: str) -> None:
        """Leave a key out again."""
        self._lines.pop(path, None)

    def has(self, path: str) -> bool:
        """Return whether the key is set."""
        return path in self._lines

    def comment(self, table: str, text: str) -> None:
        """Add a comment at the head of a table."""
        self._table_comments.setdefault(table, []).append(text)

    def add_static(self, row: dict[str, str | bool], comment: str) -> None:
        """Add a folder of static files; ``row`` holds the keys of [[static]] without the table."""
        self._rows.append(row)
        self._row_comments.append(comment)

    def note(self, what: str, why: str) -> None:
        """Say why a setting has no counterpart."""
        self._notes.append((what, why))

    def to_toml(self) -> str:
        """Return the file."""
        parts = [_comment(f"Made by serve-zig migrate from {self.origin}.", "")]
        for table in TABLES:
            part = self._static() if table == "static" else self._table(table)
            if part:
                parts.append(part)
        if self._notes:
            notes = [_comment(f"{what}: {why}", "    ") for what, why in self._notes]
            parts.append("\n".join(["# Without a counterpart:", "#", *notes]))
        return "\n\n".join(parts) + "\n"

    def _table(self, table: str) -> str:
        comments = [_comment(text, "") for text in self._table_comments.get(table, [])]
        lines: list[str] = []
        for key in keys_of(table):
            line = self._lines.get(key.path)
            if line is None:
                continue
            lines += [_comment(text, "") for text in line.comments]
            lines.append(f"{key.name} = {line.value}")
        if not lines and not comments:
            return ""
        return "\n".join([f"[{table}]", *comments, *lines])

    def _static(self) -> str:
        parts = []
        for row, comment in zip(self._rows, self._row_comments, strict=True):
            lines = ["[[static]]", _comment(comment, "")]
            lines += [f"{name} = {_plain(value)}" for name, value in row.items()]
            parts.append("\n".join(lines))
        return "\n\n".join(parts)


def _to_toml(kind: Kind, value: object) -> str:
    if isinstance(value, Template):
        return toml_format.string(value.text)
    if isinstance(value, list):
        # Addresses and the like: those with a variable cannot be checked before it is known.
        plain = [item for item in value if isinstance(item, str)]
        if plain:
            kind.parse(plain)
        texts = [item.text if isinstance(item, Template) else escape(item) for item in value]
        return toml_format.strings(texts)
    checked = kind.parse(value)
    if isinstance(kind, Text) and isinstance(checked, str):
        checked = escape(checked)
    return kind.to_toml(checked)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return toml_format.number(value)
    return toml_format.string(escape(str(value)))


def _comment(text: str, indent: str) -> str:
    return "\n".join(
        textwrap.wrap(
            toml_format.printable(text),
            _COLUMNS,
            initial_indent="# ",
            subsequent_indent=f"# {indent}",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def address(text: str) -> str:
    """Return a bind address of gunicorn or uWSGI as ``listen.bind`` writes it.

    Variables in it (``${NAME:-default}``) stay as they are.
    """
    hidden, variables = _hide(text.strip())
    for prefix in ("tcp://", "http://"):
        hidden = hidden.removeprefix(prefix)
    if hidden.startswith("unix:"):
        path = hidden.removeprefix("unix:")
        hidden = f"unix:{path[2:] if path.startswith('//') else path}"
    elif hidden.startswith("fd:"):
        pass
    elif hidden.startswith("*:") or hidden.startswith("0:"):
        hidden = hidden[1:]
    elif hidden == "":
        hidden = ":8000"
    elif hidden.rpartition(":")[1] == "" or hidden.endswith("]"):
        hidden = f"{hidden}:8000"
    return _restore(hidden, variables)


def _hide(text: str) -> tuple[str, list[str]]:
    """Put a mark for each variable, whose default may hold what an address means by a colon."""
    parts = text.split("${")
    hidden, variables = parts[0], []
    for part in parts[1:]:
        inside, _, rest = part.partition("}")
        variables.append("${" + inside + "}")
        hidden += f"\0{rest}"
    return hidden, variables


def _restore(hidden: str, variables: Sequence[str]) -> str:
    for variable in variables:
        hidden = hidden.replace("\0", variable, 1)
    return hidden
