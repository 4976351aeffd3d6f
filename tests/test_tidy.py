"""The house rules that no compiler and no linter knows (CONTRIBUTING.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CORE = REPOSITORY / "src" / "core"
NOT_OURS = {
    ".git",
    ".venv",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    ".zig-cache",
    "zig-out",
    "dist",
    "build",
}
LINE_COLUMNS_MAX = 100
FUNCTION_LINES_MAX = 70

# Places on one developer's machine; pieced together, so that this file does not name them.
PRIVATE_PLACES = re.compile(
    "|".join(("/" + "work/(?:main|shared)", "/" + "tmp/(?:w|plan|ci)/", "/" + r"root/\.pyenv"))
)


def sources(folder: Path) -> Iterator[Path]:
    """Return the files of a folder that are neither built nor downloaded."""
    for path in sorted(folder.iterdir()):
        if path.name in NOT_OURS:
            continue
        if path.is_dir():
            yield from sources(path)
        elif path.suffix not in (".so", ".sqlite3", ".png", ".gz", ".whl"):
            yield path


ALL = list(sources(REPOSITORY))
ZIG = [path for path in ALL if path.suffix == ".zig"]
PYTHON_TESTS = sorted((REPOSITORY / "tests").glob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def is_test(path: Path) -> bool:
    return path.stem.endswith(("_test", "_fixture"))


def code_of(path: Path) -> str:
    """Return a Zig file without its comments."""
    return re.sub(r"//.*", "", path.read_text("utf-8"))


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Return name and length in lines of each Zig function; `zig fmt` has laid the file out.

    A function that returns a type is a file of its own, so to speak, and has no limit.
    """
    lines = text.splitlines()
    for number, line in enumerate(lines):
        start = re.match(r"( *)(?:[a-z]+ (?:\"c\" )?)*fn (\w+)\(", line)
        if start is None:
            continue
        head = number
        while not lines[head].endswith(("{", ";", "}")):
            head += 1
        if not lines[head].endswith("{") or lines[head].endswith(" type {"):
            continue
        end = head + 1
        while not lines[end].startswith(start[1] + "}"):
            end += 1
        yield start[2], end - number + 1


def test_functions_are_found_and_measured() -> None:
    text = (
        "pub fn one() void {\n    return;\n}\n"
        "const S = struct {\n    fn two(\n        a: u8,\n    ) u8 {\n"
        "        if (a == 0) {\n        }\n        return a;\n    }\n};\n"
        'extern "c" fn three() c_int;\n'
        "fn four() type {\n    return struct {\n        inline fn five() void {}\n    };\n}\n"
    )
    assert list(functions(text)) == [("one", 3), ("two", 7)]


def test_zig_sources_are_found() -> None:
    assert {"src/lib.zig", "src/core/server.zig", "build.zig"} <= {name(path) for path in ZIG}


@pytest.mark.parametrize("path", ZIG, ids=name)
def test_zig_file(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith("//! "), "it opens with its duty, the owner of its data, its thread"
    long = [n for n, line in enumerate(text.splitlines(), 1) if len(line) > LINE_COLUMNS_MAX]
    assert not long, f"longer than {LINE_COLUMNS_MAX} columns: lines {long}"
    large = [found for found in functions(text) if found[1] > FUNCTION_LINES_MAX]
    assert not large, f"longer than {FUNCTION_LINES_MAX} lines: {large}"


@pytest.mark.parametrize("path", [path for path in ZIG if CORE in path.parents], ids=name)
def test_core_knows_no_python(path: Path) -> None:
    # "std", "builtin" and "build_options" come with the compiler and the build.
    imports = re.findall(r'@import\("([^"]+)"\)', code_of(path))
    foreign = {one for one in imports if not one.endswith(".zig")}
    assert foreign <= {"std", "builtin", "build_options"}
    for one in imports:
        if one.endswith(".zig"):
            assert CORE in (path.parent / one).resolve().parents, f"{one} is not in src/core"
    assert not re.search(r"\bPy_?[A-Z]\w+\(|@cImport", code_of(path))


@pytest.mark.parametrize("path", [path for path in ZIG if CORE in path.parents], ids=name)
def test_only_sys_makes_system_calls(path: Path) -> None:
    # Tests are clients, too, and may use std's sockets.
    if path.name == "sys.zig" or is_test(path):
        return
    code = code_of(path)
    # kqueue is a library on Linux, so its two functions are declared beside their only caller.
    declared = re.findall(r"\bextern (?:\"\w+\" )?fn (\w+)", code)
    assert declared == (["kqueue", "kevent"] if path.name == "kqueue.zig" else [])
    assert not re.search(r"\bstd\.(?:posix|os\.linux|net|fs)\b", code)
    if path.name != "kqueue.zig":
        assert not re.search(r"\bstd\.c\b", code)


def test_nothing_allocates_through_pydust() -> None:
    # It takes the GIL for each allocation, whoever calls.
    assert [name(path) for path in ZIG if re.search(r"\bpy\.allocator\b", code_of(path))] == []


def test_only_the_root_module_uses_pydust() -> None:
    users = [name(path) for path in ZIG if '@import("pydust")' in code_of(path)]
    assert users == ["src/lib.zig"]


# Functions that read a clock.
CLOCKS = {"monotonic", "perf_counter", "seconds_since"}
PATIENCE_MIN = 20


def calls_of(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Return name and call of each function that is called in a piece of Python."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            yield getattr(call.func, "attr", getattr(call.func, "id", "")), call


def bounds_of_time(function: ast.AST) -> Iterator[int]:
    """Return the lines at which an assertion holds a reading of a clock below a number.

    `seconds_max` is a parameter, of which all values but PATIENCE have the marker `timing`.
    """
    for node in ast.walk(function):
        if not isinstance(node, ast.Assert):
            continue
        for compared in ast.walk(node):
            if not isinstance(compared, ast.Compare):
                continue
            sides = [compared.left, *compared.comparators]
            for left, operator, right in zip(sides, compared.ops, sides[1:], strict=False):
                lower, upper = (
                    (left, right) if isinstance(operator, ast.Lt | ast.LtE) else (right, left)
                )
                # A deadline is compared with the clock itself.
                is_elapsed = isinstance(lower, ast.BinOp) or "seconds_since" in ast.unparse(lower)
                is_clock = is_elapsed and any(name in CLOCKS for name, _ in calls_of(lower))
                if is_clock and getattr(upper, "id", "") != "seconds_max":
                    yield node.lineno


def test_bounds_of_time_are_found() -> None:
    source = (
        "assert time.monotonic() - began < 2\n"
        "assert 1 < seconds_since(began) < 2\n"
        "assert 2 >= time.perf_counter() - began\n"
        "assert time.monotonic() - began > 1\n"
        "assert time.monotonic() - began < seconds_max\n"
        "assert time.monotonic() < deadline\n"
    )
    assert list(bounds_of_time(ast.parse(source))) == [1, 2, 3]


@pytest.mark.parametrize("path", PYTHON_TESTS, ids=name)
def test_only_tests_of_timing_compare_time(path: Path) -> None:
    """A busy machine takes its time: the default run waits for conditions (wire.PATIENCE)."""
    tree = ast.parse(path.read_text("utf-8"))
    timing = [
        function
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any("mark.timing" in ast.unparse(one) for one in function.decorator_list)
        and not any("seconds_max" in ast.unparse(one) for one in function.decorator_list)
    ]
    left_out = {line for function in timing for line in bounds_of_time(function)}
    assert sorted(set(bounds_of_time(tree)) - left_out) == []


@pytest.mark.parametrize("path", PYTHON_TESTS, ids=name)
def test_waits_have_a_patient_limit(path: Path) -> None:
    """wire.PATIENCE, which is the default of most."""
    impatient = []
    for function, call in calls_of(ast.parse(path.read_text("utf-8"))):
        limits = [one.value for one in call.keywords if one.arg in ("within", "timeout")]
        limits += call.args[1:2] if function == "wait_until" else []
        impatient += [
            call.lineno
            for limit in limits
            if isinstance(limit, ast.Constant)
            and isinstance(limit.value, int | float)
            and limit.value < PATIENCE_MIN
        ]
    assert impatient == []


def test_every_key_of_the_reference_config_is_explained() -> None:
    for line in (REPOSITORY / "serve.toml").read_text("utf-8").splitlines():
        if re.match(r"(?:# )?\w+ = ", line):
            assert re.search(r" # \S", line), line


def test_no_file_names_a_place_on_a_developers_machine() -> None:
    found = [
        f"{name(path)}: {match[0]}"
        for path in ALL
        for match in PRIVATE_PLACES.finditer(path.read_bytes().decode("utf-8", "replace"))
    ]
    assert found == []


@pytest.mark.parametrize("path", [path for path in ALL if path.suffix == ".md"], ids=name)
def test_links_of_a_document_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_zig_file_is_in_the_architecture() -> None:
    text = (REPOSITORY / "docs" / "ARCHITECTURE.md").read_text("utf-8")
    listed = [path for path in ZIG if REPOSITORY / "src" in path.parents and not is_test(path)]
    assert [name(path) for path in listed if f"`{path.name}`" not in text] == []
