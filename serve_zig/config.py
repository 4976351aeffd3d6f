"""serve.toml and ``--set``, read, checked against the schema and completed with its defaults.

Every mistake found is reported at once, each on one line: the file and line (or ``--set``), the
key path, what was found and what is allowed.
"""

from __future__ import annotations

import os
import sys

import tomli

from serve_zig import toml_format, toml_reader
from serve_zig.addresses import MASK, UnixAddress, is_secret_name, mask_secrets, parse_address
from serve_zig.combinations import check_combinations
from serve_zig.errors import ConfigError
from serve_zig.interpolation import InterpolationError, escape, expand, names_in
from serve_zig.kinds import Kind, Text, UnsuitableError, Value
from serve_zig.schema import ARRAYS, KEYS, TABLES, Key, keys_of
from serve_zig.static_tables import check_tables, resolve_directory
from serve_zig.toml_location import line_of
from serve_zig.unknown_keys import elsewhere, refusal, unknown_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILE_DEFAULT = "serve.toml"

# Configs of other servers.
_OTHERS = ("gunicorn.conf.py", "gunicorn_config.py", "uwsgi.ini")

# The room of sockaddr_un.sun_path, less the NUL that ends it.
_UNIX_PATH_BYTES_MAX = 103 if sys.platform == "darwin" else 107

_OVERRIDE = "--set"

ACCESS_WORDS = ("off", "stdout", "stderr")
"""Values of log.access that are no file."""


class Config:
    """The resolved config: a value for every key.

    ``file`` is the config file as the user named it. Paths are absolute. ``counts`` tells how many
    there are of each table in ``ARRAYS``; the key paths of theirs are ``static.0.route``.
    """

    def __init__(
        self,
        file: str,
        text: str,
        values: dict[str, Value],
        overridden: set[str],
        counts: dict[str, int],
        written: Mapping[str, object],
    ):
        self.file = file
        self._text = text
        self._values = values
        self._overridden = overridden
        self._counts = counts
        self._written = written
        self.warnings: list[str] = []
        """What has no effect; the server starts all the same."""

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

    def count(self, table: str) -> int:
        """Return how many there are of a table in ``ARRAYS``."""
        return self._counts[table]

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

    def to_tables(self) -> dict[str, dict[str, Value] | list[dict[str, Value]]]:
        """Return every key's value, table by table: times in seconds, sizes in bytes.

        A table in ``ARRAYS`` is a list of as many as there are. What is secret is masked, since
        this is for others to see: /status.
        """
        found: dict[str, dict[str, Value] | list[dict[str, Value]]] = {}
        for table in TABLES:
            rows = [
                {key.name: self._masked(key, prefix) for key in keys_of(table)}
                for prefix in _prefixes(table, self._counts)
            ]
            found[table] = rows if table in ARRAYS else rows[0]
        return found

    def _masked(self, key: Key, prefix: str) -> Value:
        path = prefix + key.name
        return _masked(key, self._values[path], self._written.get(path))

    def to_toml(self) -> str:
        """Return the config as a TOML file that loads to the same config from any directory."""
        tables = []
        for table in TABLES:
            for prefix in _prefixes(table, self._counts):
                lines = [
                    f"{key.name} = {_to_toml(key.kind, self._values[prefix + key.name])}"
                    for key in keys_of(table)
                ]
                header = f"[[{table}]]" if table in ARRAYS else f"[{table}]"
                tables.append("\n".join([header, *lines, ""]))
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
    tables = toml_reader.parse(file, text)
    problems: list[str] = []
    written, counts = _flatten(file, text, tables, problems)
    overridden = _override(overrides, written, counts, problems)

    values: dict[str, Value] = {}
    for key in KEYS:
        for prefix in _prefixes(key.table, counts):
            path = prefix + key.name
            if path in written:
                try:
                    value = _check(key, written[path], environment)
                except (UnsuitableError, InterpolationError) as error:
                    place = _place(file, text, path, path in overridden)
                    problems += [f"{place}: {path}: {what}" for what in error.args]
                else:
                    values[path] = value
            elif key.default is None:
                place = _place(file, text, prefix[:-1], False) if key.table in ARRAYS else file
                problems.append(f"{place}: {path}: missing; it must be given: {key.kind.allowed}")
            else:
                values[path] = key.default
    if problems:
        raise ConfigError(*problems)

    config = Config(file, text, values, overridden, counts, written)
    _resolve(config, values, set(written))
    return config


def _prefixes(table: str, counts: Mapping[str, int]) -> list[str]:
    """Return what the key paths of a table begin with, once for each of them."""
    if table not in ARRAYS:
        return [f"{table}."]
    return [f"{table}.{index}." for index in range(counts[table])]


def _read(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            return stream.read().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: no such file in {os.getcwd()}; name the config with -c, or write one: "
            f'[app] target = "package.module:callable" ({_writer()})'
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({os.strerror(error.errno or 0)}); name a TOML file with -c"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: not UTF-8 (at byte {error.start}); TOML files are UTF-8, save it as such"
        ) from None


def _writer() -> str:
    """Return the command that writes a config."""
    other = next((name for name in _OTHERS if os.path.isfile(name)), None)
    if other is None:
        return "serve-zig init does"
    return f"serve-zig migrate {other} > serve.toml does, from the one that is here"


def _place(file: str, text: str, path: str, overridden: bool) -> str:
    if overridden:
        return _OVERRIDE
    line = line_of(text, tuple(path.split(".")))
    return file if line is None else f"{file}:{line}"


def _flatten(
    file: str, text: str, tables: dict[str, object], problems: list[str]
) -> tuple[dict[str, object], dict[str, int]]:
    """Return the values by key path, and the number of each table of which there may be several.

    What the schema does not know goes to ``problems``.
    """
    written: dict[str, object] = {}
    counts = dict.fromkeys(ARRAYS, 0)

    def refuse(parts: tuple[str, ...], what: str) -> None:
        line = line_of(text, parts)
        place = file if line is None else f"{file}:{line}"
        problems.append(f"{place}: {'.'.join(map(toml_format.key, parts))}: {what}")

    for table, content in tables.items():
        if table not in TABLES:
            refuse((table,), unknown_table(table, content))
            for name in content if isinstance(content, dict) and not elsewhere(table) else ():
                if elsewhere(name):
                    refuse((table, name), f"unknown key; {elsewhere(name)}")
            continue
        parents: list[tuple[str, ...]]
        if table in ARRAYS:
            rows = _rows(content)
            if rows is None:
                found = toml_format.describe(content)
                refuse((table,), f"found {found}; allowed are tables, [[{table}]]")
                continue
            counts[table] = len(rows)
            parents = [(table, str(index)) for index in range(len(rows))]
        elif isinstance(content, dict):
            rows, parents = [content], [(table,)]
        else:
            found = toml_format.describe(content)
            refuse((table,), f"found {found}; allowed is a table, [{table}]")
            continue
        for parent, row in zip(parents, rows, strict=True):
            for name, value in row.items():
                reason = refusal(table, name)
                if reason:
                    refuse((*parent, name), reason)
                else:
                    written[".".join((*parent, name))] = value
    return written, counts


def _rows(content: object) -> list[dict[str, object]] | None:
    """Return the tables of an array of tables, None where it is something else."""
    if not isinstance(content, list):
        return None
    rows = [row for row in content if isinstance(row, dict)]
    return rows if len(rows) == len(content) else None


def _override(
    overrides: Sequence[str],
    written: dict[str, object],
    counts: dict[str, int],
    problems: list[str],
) -> set[str]:
    """Lay the ``--set`` texts over what the file says; return the key paths that they gave."""
    overridden: set[str] = set()
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip()
        if not equals:
            problems.append(
                f"{_OVERRIDE}: {toml_format.describe(override)} has no equals sign; write "
                f"{_OVERRIDE} listen.bind=127.0.0.1:9000"
            )
            continue
        reason = _override_refusal(path, counts)
        if reason:
            problems.append(f"{_OVERRIDE}: {path}: {reason}")
            continue
        try:
            value = _parse_override(text.strip())
        except tomli.TOMLDecodeError as error:
            what = toml_reader.message_of(error)[0]
            problems.append(f"{_OVERRIDE}: {path}: not valid TOML: {what}; mend the quotes")
            continue
        if path in ARRAYS:
            overridden |= _override_array(path, value, written, counts, problems)
        else:
            written[path] = value
            overridden.add(path)
    return overridden


def _override_refusal(path: str, counts: Mapping[str, int]) -> str:
    """Return why the path cannot be set; empty where it can."""
    table, _, name = path.partition(".")
    if table not in TABLES:
        if elsewhere(name) and not elsewhere(table):
            return f"unknown key; {elsewhere(name)}"
        return unknown_table(table, {} if name else "")
    if table not in ARRAYS:
        if name:
            return refusal(table, name)
        names = ", ".join(key.path for key in keys_of(table))
        return f"a table; name one of its keys: {names}"
    if not name:
        return ""
    number, dot, name = name.partition(".")
    if not (number.isdecimal() and dot and name):
        return (
            f"there may be several of [[{table}]]; name the key of one of them, such as "
            f"{table}.0.{keys_of(table)[0].name}, or set {table} to the whole list"
        )
    if int(number) >= counts[table]:
        return f"there are {counts[table]} of [[{table}]], counted from 0; set {table} for more"
    return refusal(table, name)


def _override_array(
    table: str,
    value: object,
    written: dict[str, object],
    counts: dict[str, int],
    problems: list[str],
) -> set[str]:
    """Put the tables of ``value`` in the place of all that there were."""
    rows = _rows(value)
    if rows is None:
        problems.append(
            f"{_OVERRIDE}: {table}: found {toml_format.describe(value)}; allowed is a list of "
            f'tables, such as [{{ {keys_of(table)[0].name} = "..." }}]'
        )
        return set()
    for path in [path for path in written if path.startswith(f"{table}.")]:
        del written[path]
    counts[table] = len(rows)
    paths = set()
    for index, row in enumerate(rows):
        for name, item in row.items():
            path = f"{table}.{index}.{name}"
            reason = refusal(table, name)
            if reason:
                problems.append(f"{_OVERRIDE}: {path}: {reason}")
            else:
                written[path] = item
                paths.add(path)
    return paths


def _parse_override(text: str) -> object:
    try:
        document: dict[str, object] = tomli.loads(f"value = {text}")
    except tomli.TOMLDecodeError:
        # A bare word. An address such as [::1]:8000 looks like a broken list and is meant too;
        # only a quote that is never closed is certainly a slip.
        if text[:1] in ("'", '"'):
            raise
        return text
    except (RecursionError, ValueError):
        # Nested too deeply, or an integer that Python does not read: no value of any key.
        return text
    # Text with line breaks may have smuggled in further keys.
    return document["value"] if len(document) == 1 else text


def _check(key: Key, value: object, environment: Mapping[str, str]) -> Value:
    if isinstance(value, list):
        return _check_list(key, value, environment)
    if not isinstance(value, str):
        return key.kind.parse(value)
    expanded = expand(value, environment)
    if "${" not in value or expanded == value:
        return key.kind.parse(expanded)
    try:
        return key.kind.from_text(expanded)
    except UnsuitableError as error:
        written = toml_format.string(value)
        raise UnsuitableError(*(f"{what} (written as {written})" for what in error.args)) from None


def _check_list(key: Key, value: list[object], environment: Mapping[str, str]) -> Value:
    items: list[object] = []
    problems: list[str] = []
    for item in value:
        try:
            items.append(expand(item, environment) if isinstance(item, str) else item)
        except InterpolationError as error:
            problems.append(str(error))
    if not problems:
        return key.kind.parse(items)
    try:
        if items:
            key.kind.parse(items)
    except UnsuitableError as error:
        problems += error.args
    raise UnsuitableError(*problems)


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
        _absolute_address(text, base, config.place("listen.bind"), problems)
        for text in config.strings("listen.bind")
    ]
    if config.text("admin.bind"):
        values["admin.bind"] = _absolute_address(
            config.text("admin.bind"), base, config.place("admin.bind"), problems
        )

    if config.text("log.access") == "-":
        # What other servers call it.
        values["log.access"] = "stdout"
    access = config.text("log.access")
    if access not in ACCESS_WORDS:
        path = os.path.normpath(os.path.join(base, access))
        values["log.access"] = path
        if not os.path.isdir(os.path.dirname(path)) or os.path.isdir(path):
            problems.append(
                f"{config.place('log.access')}: {path} cannot be a log file; name a file in a "
                'directory that is there, or "stdout", "stderr", "off"'
            )
    for index in range(config.count("static")):
        path = f"static.{index}.directory"
        values[path] = resolve_directory(config, path, base, problems)
    check_tables(config, problems)

    check_combinations(config, values, written, problems)
    if problems:
        raise ConfigError(*problems)


def _absolute_address(text: str, base: str, place: str, problems: list[str]) -> str:
    address = parse_address(text)
    if not isinstance(address, UnixAddress):
        return text
    path = os.path.join(base, address.path)
    if len(os.fsencode(path)) > _UNIX_PATH_BYTES_MAX:
        problems.append(
            f"{place}: {toml_format.string(path)} is too long for a unix socket; allowed are "
            f"{_UNIX_PATH_BYTES_MAX} bytes"
        )
    return f"unix:{path}"


def _masked(key: Key, value: Value, written: object) -> Value:
    """Return what others may see of a value that stands in the config as ``written``."""
    if isinstance(value, list):
        given = written if isinstance(written, list) else [written] * len(value)
        if len(given) != len(value):
            return [mask_secrets(one) for one in value]
        return [_masked_text(key, *pair) for pair in zip(value, given, strict=True)]
    return _masked_text(key, value, written) if isinstance(value, str) else value


def _masked_text(key: Key, text: str, written: object) -> str:
    if is_secret_name(key.name) and text:
        return MASK
    if isinstance(written, str):
        secret = [one for one in names_in(written) if is_secret_name(one)]
        if secret:
            # As it was written, for the value may be a part of another word by now.
            return mask_secrets(written)
    return mask_secrets(text)


def _to_toml(kind: Kind, value: Value) -> str:
    if isinstance(value, list):
        return kind.to_toml([escape(item) for item in value])
    if isinstance(kind, Text):
        assert isinstance(value, str)
        return kind.to_toml(escape(value))
    return kind.to_toml(value)
