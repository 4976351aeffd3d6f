"""``serve-zig schema``: the JSON Schema of serve.toml, made from the table of keys in schema.py.

Editors complete and check the file with it. The schema refuses nothing that the server accepts. It
accepts some that the server refuses: what a schema cannot express, such as whether an address is
well-formed or a directory exists, is left to ``serve-zig --check``.
"""

from __future__ import annotations

import argparse
import json
import sys

import tomli

from serve_zig import kinds, schema
from serve_zig.errors import EXIT_DRAINED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    JsonSchema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

# A string that holds a variable becomes its value before the type is looked at, so a number or a
# word may be written as one. What the variable holds is the loader's to check.
_VARIABLE_PATTERN = r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}"
_SIZE_PATTERN = rf"^[0-9]{{1,20}} ?({'|'.join(kinds.SIZE_UNITS)})$"

# What a kind that this file does not know calls itself, word for word.
_NAMED: dict[str, JsonSchema] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "seconds": {"type": "number"},
    "size": {"type": ["integer", "string"]},
    "string": {"type": "string"},
    "list of strings": {"type": "array", "items": {"type": "string"}},
}


def main(arguments: Sequence[str]) -> int:
    """Run ``serve-zig schema`` and return the exit status."""
    argparse.ArgumentParser(
        prog="serve-zig schema",
        description="Print the JSON Schema of serve.toml. An editor with TOML support (taplo, Even "
        "Better TOML) uses it for a file whose first line is #:schema ./serve.schema.json, where "
        "serve.schema.json is what this prints.",
        allow_abbrev=False,
    ).parse_args(arguments)
    # JSON is UTF-8, whatever the terminal's encoding is.
    sys.stdout.buffer.write(to_json().encode("utf-8"))
    sys.stdout.flush()
    return EXIT_DRAINED


def to_json() -> str:
    """Return the schema as the text of a file."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def document() -> JsonSchema:
    """Return the schema of a whole file."""
    tables = {name: _table(name) for name in schema.TABLES}
    return {
        "$schema": DIALECT,
        "title": "serve.toml",
        "description": "The configuration of serve-zig, a WSGI server.",
        "type": "object",
        "properties": tables,
        "required": [name for name in tables if _required(name) and name not in schema.ARRAYS],
        "additionalProperties": False,
    }


def _table(name: str) -> JsonSchema:
    described: JsonSchema = {
        "description": schema.TABLES[name],
        "type": "object",
        "properties": {key.name: _key(key) for key in schema.keys_of(name)},
        "additionalProperties": False,
    }
    required = _required(name)
    if required:
        described["required"] = required
    if name in schema.ARRAYS:
        return {"description": described.pop("description"), "type": "array", "items": described}
    return described


def _required(table: str) -> list[str]:
    return [key.name for key in schema.keys_of(table) if key.default is None]


def _key(key: schema.Key) -> JsonSchema:
    # The text of "allowed" begins as the end of a sentence does.
    described: JsonSchema = {
        "description": f"{key.documentation} Allowed is {key.kind.allowed}.",
        **of_kind(key.kind),
    }
    if key.default_toml:
        # As the documents show it: "8 KiB", and not the number of bytes.
        described["default"] = tomli.loads(f"value = {key.default_toml}")["value"]
    return described


def of_kind(kind: kinds.Kind) -> JsonSchema:
    """Return the schema of the values that a kind accepts, those with variables included."""
    match kind:
        case kinds.Size():
            bytes_only = {"type": "integer", "minimum": kind.least, "maximum": kind.most}
            return _any_of(
                bytes_only, {"type": "string", "pattern": f"{_SIZE_PATTERN}|{_VARIABLE_PATTERN}"}
            )
        case kinds.Integer():
            return _or_variable({"type": "integer", "minimum": kind.least, "maximum": kind.most})
        case kinds.Seconds():
            # A ratio, too.
            return _or_variable({"type": "number", "minimum": kind.least, "maximum": kind.most})
        case kinds.Choice():
            return _or_variable({"enum": list(kind.words)})
        case kinds.Addresses():
            text = {"type": "string", "minLength": 1}
            several = {"type": "array", "items": text, "minItems": 1, "uniqueItems": True}
            return _any_of(text, several)
        case kinds.Text():
            return {"type": "string"} if _accepts(kind, "") else {"type": "string", "minLength": 1}
        case _:
            return _of_name(kind)


def _of_name(kind: kinds.Kind) -> JsonSchema:
    """Return what a kind's name says that it accepts; "string or list of strings", say."""
    known = [_NAMED[name] for name in kind.name.split(" or ")]
    if not any("string" in one["type"] for one in known):
        known.append({"type": "string", "pattern": _VARIABLE_PATTERN})
    return known[0] if len(known) == 1 else _any_of(*known)


def _accepts(kind: kinds.Kind, value: object) -> bool:
    try:
        kind.parse(value)
    except kinds.UnsuitableError:
        return False
    return True


def _or_variable(plain: JsonSchema) -> JsonSchema:
    return _any_of(plain, {"type": "string", "pattern": _VARIABLE_PATTERN})


def _any_of(*alternatives: JsonSchema) -> JsonSchema:
    return {"anyOf": list(alternatives)}
