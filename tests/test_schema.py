"""`serve-zig schema`: a valid JSON Schema that agrees with what the server reads."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli
from jsonschema import Draft202012Validator

from serve_zig import config, json_schema, kinds, schema
from serve_zig.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = [REPOSITORY / "serve.toml", *sorted(REPOSITORY.glob("examples/**/serve.toml"))]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    """Return a validator for documents, read from TOML."""
    return Draft202012Validator(json_schema.document())


def properties(table: str) -> dict[str, Any]:
    """Return the schemas of a table's keys."""
    described = json_schema.document()["properties"][table]
    found: dict[str, Any] = described.get("items", described)["properties"]
    return found


def with_key(key: schema.Key, value: object) -> dict[str, Any]:
    """Return a whole document with one key."""
    document: dict[str, Any] = {"app": {"target": "hello:app"}}
    table = document.setdefault(key.table, {})
    if key.table in schema.ARRAYS:
        table |= {one.name: "/a" for one in schema.keys_of(key.table) if one.default is None}
        document[key.table] = [table]
    table[key.name] = value
    return document


def test_command_prints_the_schema() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serve_zig", "schema"], capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert done.stdout.decode("utf-8") == json_schema.to_json()


def test_command_takes_no_arguments() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serve_zig", "schema", "serve.toml"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "usage: serve-zig schema" in done.stderr


def test_schema_is_a_valid_one() -> None:
    document = json.loads(json_schema.to_json())
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(document)


def test_schema_for_editors_is_up_to_date() -> None:
    """The file that `#:schema` names; scripts/check compares it too."""
    text = (REPOSITORY / "docs" / "serve.schema.json").read_text("utf-8")
    assert text == json_schema.to_json(), "run scripts/generate-configuration"


def test_editors_find_the_schema_of_the_reference_file() -> None:
    first = (REPOSITORY / "serve.toml").read_text("utf-8").splitlines()[0]
    directive, _, place = first.partition(" ")
    assert directive == "#:schema"
    assert (REPOSITORY / place).is_file()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_configs_of_the_repository_are_valid(file: Path, validator: Draft202012Validator) -> None:
    validator.validate(tomli.loads(file.read_text("utf-8")))


def test_every_available_key_is_described_with_its_default() -> None:
    for key in schema.KEYS:
        described = properties(key.table)[key.name]
        assert described["description"].startswith(key.documentation)
        if key.default is None:
            assert "default" not in described
        else:
            assert key.kind.parse(described["default"]) == key.default


def test_every_key_is_in_it() -> None:
    assert set(json_schema.document()["properties"]) == set(schema.TABLES)
    for name in schema.TABLES:
        assert set(properties(name)) == {key.name for key in schema.keys_of(name)}


@pytest.mark.parametrize("key", schema.KEYS, ids=lambda key: str(key.path))
def test_defaults_and_variables_are_valid(key: schema.Key, validator: Draft202012Validator) -> None:
    if key.default_toml:
        default = tomli.loads(f"value = {key.default_toml}")["value"]
        validator.validate(with_key(key, default))
    if not isinstance(key.default, bool) and isinstance(key.default, str | int | float | None):
        validator.validate(with_key(key, "${NAME}"))
        validator.validate(with_key(key, "${NAME:-1}"))


@pytest.mark.parametrize("key", schema.KEYS, ids=lambda key: str(key.path))
def test_values_of_another_type_are_not_valid(
    key: schema.Key, validator: Draft202012Validator
) -> None:
    for value in ({"a": 1}, [[1]], [1.5]):
        assert not validator.is_valid(with_key(key, value)), value


@pytest.mark.parametrize(
    ("path", "value", "is_valid"),
    [
        ("concurrency.threads", 1, True),
        ("concurrency.threads", 0, False),
        ("concurrency.threads", 4097, False),
        ("concurrency.threads", 1.5, False),
        ("concurrency.threads", True, False),
        ("concurrency.threads", "8", False),
        ("concurrency.threads", "${THREADS:-8}", True),
        ("concurrency.threads", "${2}", False),
        ("limits.body", 1024, True),
        ("limits.body", 0, False),
        ("limits.body", "16 KiB", True),
        ("limits.body", "16KiB", True),
        ("limits.body", "16 kib", False),
        ("limits.body", "16", False),
        ("limits.body", "lots", False),
        ("limits.body", "${SIZE}", True),
        ("timeouts.head", 0.001, True),
        ("timeouts.head", 10, True),
        ("timeouts.head", 0.0, False),
        ("timeouts.head", "10 s", False),
        ("log.level", "info", True),
        ("log.level", "debug", False),
        ("log.level", "${LEVEL}", True),
        ("listen.unix_mode", 0o660, True),
        ("listen.unix_mode", 660, False),
        ("listen.bind", ":8000", True),
        ("listen.bind", [":8000", "unix:/run/app.sock"], True),
        ("listen.bind", [], False),
        ("listen.bind", [":8000", ":8000"], False),
        ("listen.bind", 8000, False),
        ("app.target", "", False),
    ],
)
def test_edges(path: str, value: object, is_valid: bool, validator: Draft202012Validator) -> None:
    document = with_key(schema.KEYS_BY_PATH[path], value)
    assert validator.is_valid(document) == is_valid
    # And the loader agrees.
    key = schema.KEYS_BY_PATH[path]
    environment = {"THREADS": "8", "SIZE": "1 KiB", "LEVEL": "info"}
    try:
        config._check(key, value, environment)
    except ValueError:
        assert not is_valid
    else:
        assert is_valid


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"app": {}},
        {"listen": {"bind": ":8000"}},
        {"app": {"target": "hello:app", "targt": "x"}},
        {"app": {"target": "hello:app"}, "listn": {}},
        {"app": {"target": "hello:app"}, "threads": 3},
        {"app": {"target": "hello:app"}, "limits": 3},
        {"app": [{"target": "hello:app"}]},
    ],
    ids=str,
)
def test_wrong_documents_are_not_valid(
    document: dict[str, Any], validator: Draft202012Validator, tmp_path: Path
) -> None:
    assert not validator.is_valid(document)


def test_kinds_that_are_only_known_by_name() -> None:
    class Flag(kinds.Kind):
        name = "boolean"

    class Words(kinds.Kind):
        name = "string or list of strings"

    flag = Draft202012Validator(json_schema.of_kind(Flag()))
    assert flag.is_valid(True)
    assert flag.is_valid("${NAME}")
    assert not flag.is_valid("yes")
    words = Draft202012Validator(json_schema.of_kind(Words()))
    assert words.is_valid("a")
    assert words.is_valid(["a"])
    assert not words.is_valid([1])


def test_resolved_config_is_valid(tmp_path: Path, validator: Draft202012Validator) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('[app]\ntarget = "hello:app"\n', "utf-8")
    resolved = config.load(str(file), (), {}).to_toml()
    validator.validate(tomli.loads(resolved))


def test_what_the_reference_file_says_wrongly_is_refused_by_both(
    tmp_path: Path, validator: Draft202012Validator
) -> None:
    """Each key of the reference gets a name that is not known."""
    reference = tomli.loads((REPOSITORY / "serve.toml").read_text("utf-8"))
    validator.validate(reference)
    for table, content in reference.items():
        if not isinstance(content, dict):
            continue
        for name in content:
            document = copy.deepcopy(reference)
            document[table][f"{name}x"] = document[table].pop(name)
            assert not validator.is_valid(document), (table, name)
    file = tmp_path / "serve.toml"
    file.write_text('[app]\ntarget = "hello:app"\n[listen]\nbindx = ":80"\n', "utf-8")
    with pytest.raises(ConfigError):
        config.load(str(file), (), {})
