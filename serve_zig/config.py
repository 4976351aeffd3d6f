"""serve.toml and ``--set``, read, checked against the schema and completed with its defaults.

Every mistake found is reported at once, each on one line: the file and line (or ``--set``), the
key path, what was found and what is allowed.
"""

from __future__ import annotations

import os
import sys

import tomli

from serve_zig import toml_format
from serve_zig.addresses import UnixAddress, parse_address
from serve_zig.errors import ConfigError
from serve_zig.interpolation import InterpolationError, escape, expand
from serve_zig.kinds import Kind, Text, UnsuitableError, Value, size_text
from serve_zig.nearest import nearest
from serve_zig.schema import KEYS, KEYS_BY_PATH, TABLES, Key, is_available, keys_of
from serve_zig.toml_location import line_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILE_DEFAULT = "serve.toml"

# The room of sockaddr_un.sun_path, less the NUL that ends it.
_UNIX_PATH_BYTES_MAX = 103 if sys.platform == "darwin" else 107

_OVERRIDE = "--set"

ACCESS_WORDS = ("off", "stdout", "stderr")
"""Values of log.access that are no file."""


class Config:
    """The resolved config: a value for every available key.

    ``file`` is the config file as the user named it. Paths are absolute.
    """

    def __init__(self, file: str, text: str, values: dict[str, Value], overridden: set[str]):
        self.file = file
        self._text = text
        self._values = values
        self._overridden = overridden

    def text(self, path: str) -> str:
        """Return the value of a key whose values are strings."""
        value = self._values[path]
        assert isinstance(value, str), path
        return value

    def integer(self, path: str) -> int:
        """Return the value of a key whose values are integers, or sizes in bytes."""
        value = self._values[path]
        assert isinstance(value, int), path
        return value

    def boolean(self, path: str) -> bool:
        """Return the value of a key whose values are true and false."""
        value = self._values[path]
        assert isinstance(value, bool), path
        return value

    def seconds(self, path: str) -> float:
        """Return the value of a key whose values are times, in seconds."""
        value = self._values[path]
        assert isinstance(value, float), path
        return value

    def strings(self, path: str) -> list[str]:
        """Return the value of a key whose values are lists of strings."""
        value = self._values[path]
        assert isinstance(value, list), path
        return value

    def value(self, path: str) -> Value:
        """Return the value of a key, whatever its type."""
        return self._values[path]

    def place(self, path: str) -> str:
        """Return where the key stands, and the key, as messages begin with it."""
        return f"{_place(self.file, self._text, path, path in self._overridden)}: {path}"

    def to_toml(self) -> str:
        """Return the config as a TOML file that loads to the same config from any directory."""
        tables = []
        for table in TABLES:
            lines = [
                f"{key.name} = {_to_toml(key.kind, self._values[key.path])}"
                for key in keys_of(table)
                if key.kind is not None
            ]
            if lines:
                tables.append("\n".join([f"[{table}]", *lines, ""]))
        return "\n".join(tables)


def load(
    file: str = FILE_DEFAULT,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """Return the config of ``file`` with the ``--set`` texts ``overrides`` laid over it.

    Raises ConfigError with every mistake that was found.
    """
    text = _read(file)
    tables = _parse(file, text)
    problems: list[str] = []
    written = _flatten(file, text, tables, problems)
    overriding = _parse_overrides(overrides, problems)
    written.update(overriding)

    values: dict[str, Value] = {}
    for key in KEYS:
        if key.path in written:
            try:
                value = _check(key, written[key.path], environment)
            except (UnsuitableError, InterpolationError) as error:
                place = _place(file, text, key.path, key.path in overriding)
                problems.append(f"{place}: {key.path}: {error}")
            else:
                values[key.path] = value
        elif key.kind is not None and key.default is None:
            problems.append(f"{file}: {key.path}: missing; it must be given: {key.kind.allowed}")
        elif key.default is not None:
            values[key.path] = key.default
    if problems:
        raise ConfigError(*problems)

    config = Config(file, text, values, set(overriding))
    _resolve(config, values, set(written))
    return config


def _read(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            return stream.read().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: no such file in {os.getcwd()}; name the config with -c, or write one: "
            '[app] target = "package.module:callable"'
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({os.strerror(error.errno or 0)}); name a TOML file with -c"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: not UTF-8 (at byte {error.start}); TOML files are UTF-8, save it as such"
        ) from None


def _parse(file: str, text: str) -> dict[str, object]:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(
            f"{file}:{error.lineno}:{error.colno}: not valid TOML: {error.msg}; mend this line"
        ) from None
    except RecursionError:
        raise ConfigError(f"{file}: not valid TOML: nested too deeply; make it flat") from None


def _place(file: str, text: str, path: str, overridden: bool) -> str:
    if overridden:
        return _OVERRIDE
    line = line_of(text, tuple(path.split(".")))
    return file if line is None else f"{file}:{line}"


def _flatten(
    file: str, text: str, tables: dict[str, object], problems: list[str]
) -> dict[str, object]:
    """Return the values by key path; what the schema does not know goes to ``problems``."""
    written: dict[str, object] = {}

    def refuse(parts: tuple[str, ...], what: str) -> None:
        line = line_of(text, parts)
        place = file if line is None else f"{file}:{line}"
        problems.append(f"{place}: {'.'.join(map(toml_format.key, parts))}: {what}")

    for table, content in tables.items():
        if table not in TABLES:
            refuse((table,), _unknown_table(table, content))
            continue
        # The tables of [[static]] are an array.
        content_rows = content if isinstance(content, list) else [content]
        rows = [row for row in content_rows if isinstance(row, dict)]
        if not rows or (isinstance(content, list) and is_available(table)):
            found = toml_format.describe(content)
            refuse((table,), f"found {found}; allowed is a table, [{table}]")
            continue
        if not any(rows) and not is_available(table):
            refuse((table,), "not available yet; remove the table")
        for row in rows:
            for name, value in row.items():
                refusal = _refusal(table, name)
                if refusal:
                    refuse((table, name), refusal)
                else:
                    written[f"{table}.{name}"] = value
    return written


def _refusal(table: str, name: str) -> str:
    key = KEYS_BY_PATH.get(f"{table}.{name}")
    if key is None:
        return _unknown_key(table, name)
    return "" if key.kind is not None else "not available yet; remove the key"


def _unknown_key(table: str, name: str) -> str:
    siblings = [key.name for key in keys_of(table)]
    sibling = nearest(name, siblings)
    guess = f"{table}.{sibling}" if sibling else _nearest_path(name)
    if guess is not None:
        return f'unknown key; did you mean "{guess}"?'
    return f"unknown key; the keys of [{table}] are {', '.join(siblings)}"


def _unknown_table(table: str, content: object) -> str:
    if isinstance(content, dict):
        guess = nearest(table, TABLES)
        if guess is not None:
            return f'unknown table; did you mean "[{guess}]"?'
        return f"unknown table; the tables are {', '.join(TABLES)}"
    guess = _nearest_path(table)
    if guess is not None:
        return f'unknown key; did you mean "{guess}"?'
    return f"unknown key; each key stands in one of the tables {', '.join(TABLES)}"


def _nearest_path(name: str) -> str | None:
    """Return the key of any table whose name, without the table, looks most like ``name``."""
    known = nearest(name, [key.name for key in KEYS])
    return next((key.path for key in KEYS if key.name == known), None)


def _parse_overrides(overrides: Sequence[str], problems: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip()
        if not equals:
            problems.append(
                f"{_OVERRIDE}: {toml_format.describe(override)} has no equals sign; write "
                f"{_OVERRIDE} listen.bind=127.0.0.1:9000"
            )
            continue
        table, _, name = path.partition(".")
        if table not in TABLES:
            refusal = _unknown_table(table, {} if name else "")
        elif not name:
            names = ", ".join(key.path for key in keys_of(table))
            refusal = f"a table; name one of its keys: {names}"
        else:
            refusal = _refusal(table, name)
        if refusal:
            problems.append(f"{_OVERRIDE}: {path}: {refusal}")
            continue
        try:
            values[path] = _parse_override(text.strip())
        except tomli.TOMLDecodeError as error:
            problems.append(f"{_OVERRIDE}: {path}: not valid TOML: {error.msg}; mend the quotes")
    return values


def _parse_override(text: str) -> object:
    try:
        document: dict[str, object] = tomli.loads(f"value = {text}")
    except tomli.TOMLDecodeError:
        # A bare word. An address such as [::1]:8000 looks like a broken list and is meant too;
        # only a quote that is never closed is certainly a slip.
        if text[:1] in ("'", '"'):
            raise
        return text
    # Text with line breaks may have smuggled in further keys.
    return document["value"] if len(document) == 1 else text


def _check(key: Key, value: object, environment: Mapping[str, str]) -> Value:
    assert key.kind is not None
    if isinstance(value, list):
        return key.kind.parse(
            [expand(item, environment) if isinstance(item, str) else item for item in value]
        )
    if not isinstance(value, str):
        return key.kind.parse(value)
    expanded = expand(value, environment)
    if "${" not in value or expanded == value:
        return key.kind.parse(expanded)
    try:
        return key.kind.from_text(expanded)
    except UnsuitableError as error:
        raise UnsuitableError(f"{error} (written as {toml_format.string(value)})") from None


def _resolve(config: Config, values: dict[str, Value], written: set[str]) -> None:
    """Make paths absolute and check what concerns more than one key."""
    problems: list[str] = []
    base = os.path.dirname(os.path.abspath(config.file))

    directory = os.path.normpath(os.path.join(base, config.text("app.directory")))
    values["app.directory"] = directory
    if not os.path.isdir(directory):
        problems.append(
            f"{config.place('app.directory')}: {directory} is not a directory; name the one that "
            "holds the application's modules, relative to the config file"
        )

    values["listen.bind"] = [
        _absolute_address(text, base, config, problems) for text in config.strings("listen.bind")
    ]

    access = config.text("log.access")
    if access not in ACCESS_WORDS:
        path = os.path.normpath(os.path.join(base, access))
        values["log.access"] = path
        if not os.path.isdir(os.path.dirname(path)) or os.path.isdir(path):
            problems.append(
                f"{config.place('log.access')}: {path} cannot be a log file; name a file in a "
                'directory that is there, or "stdout", "stderr", "off"'
            )

    line_bytes, head_bytes = config.integer("limits.request_line"), config.integer("limits.head")
    if line_bytes > head_bytes:
        if "limits.request_line" in written:
            problems.append(
                f"{config.place('limits.request_line')}: {size_text(line_bytes)} is more than "
                f"limits.head allows, {size_text(head_bytes)}; the line is part of the head"
            )
        values["limits.request_line"] = head_bytes

    if config.boolean("proxy.protocol") and not config.strings("proxy.trusted"):
        problems.append(
            f"{config.place('proxy.protocol')}: nobody is asked for a PROXY header, since "
            "proxy.trusted is empty; name the proxies there"
        )
    if problems:
        raise ConfigError(*problems)


def _absolute_address(text: str, base: str, config: Config, problems: list[str]) -> str:
    address = parse_address(text)
    if not isinstance(address, UnixAddress):
        return text
    path = os.path.join(base, address.path)
    if len(os.fsencode(path)) > _UNIX_PATH_BYTES_MAX:
        problems.append(
            f"{config.place('listen.bind')}: {toml_format.string(path)} is too long for a unix "
            f"socket; allowed are {_UNIX_PATH_BYTES_MAX} bytes"
        )
    return f"unix:{path}"


def _to_toml(kind: Kind, value: Value) -> str:
    if isinstance(value, list):
        return kind.to_toml([escape(item) for item in value])
    if isinstance(kind, Text):
        assert isinstance(value, str)
        return kind.to_toml(escape(value))
    return kind.to_toml(value)
