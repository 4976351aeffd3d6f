"""serve.toml and --set: what is accepted, what is refused, and what a refusal says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

from serve_zig import config, kinds, schema
from serve_zig.errors import ConfigError
from serve_zig.interpolation import InterpolationError, escape, expand
from serve_zig.nearest import nearest
from serve_zig.toml_location import line_of

REPOSITORY = Path(__file__).resolve().parent.parent

MINIMAL = '[app]\ntarget = "hello:app"\n'

SINGLE = [key for key in schema.KEYS if key.table not in schema.ARRAYS]


class Loader:
    """Loads configs from a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "serve.toml"

    def load(
        self, text: str, *overrides: str, environment: dict[str, str] | None = None
    ) -> config.Config:
        """Return the config that ``text`` and the overrides make."""
        self.file.write_text(text, encoding="utf-8")
        return config.load(str(self.file), overrides, environment or {})

    def refuse(
        self, text: str, *overrides: str, environment: dict[str, str] | None = None
    ) -> tuple[str, ...]:
        """Return the problems, with the file's name cut to its last part."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, *overrides, environment=environment)
        assert caught.value.exit_status == 2
        assert all("\n" not in problem for problem in caught.value.problems)
        return tuple(
            problem.replace(str(self.file), "serve.toml") for problem in caught.value.problems
        )


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    """Return a loader in an empty folder."""
    return Loader(tmp_path)


# The reference file and the documents.


def test_reference_file_loads_with_every_default() -> None:
    loaded = config.load(str(REPOSITORY / "serve.toml"), environment={})
    assert loaded.text("app.target") == "examples.hello:app"
    assert loaded.text("app.directory") == str(REPOSITORY)
    for key in SINGLE:
        if key.path not in ("app.target", "app.directory"):
            assert loaded._values[key.path] == key.default, key.path
    assert [loaded.count(table) for table in schema.ARRAYS] == [0]


def test_reference_file_shows_every_key_with_its_default() -> None:
    shown: dict[str, tuple[str, bool]] = {}
    table = ""
    for line in (REPOSITORY / "serve.toml").read_text(encoding="utf-8").splitlines():
        header = re.match(r"(?:# )?\[{1,2}(\w+)\]", line)
        entry = re.match(r"(# )?(\w+) = (.*?) +# (.*)", line)
        if header:
            table = header[1]
        elif entry:
            shown[f"{table}.{entry[2]}"] = (entry[3], entry[1] is None)
    assert set(shown) == set(schema.KEYS_BY_PATH)
    for path, (default_toml, is_active) in shown.items():
        key = schema.KEYS_BY_PATH[path]
        assert is_active == (key.table not in schema.ARRAYS), path
        if key.default is not None:
            assert default_toml == key.default_toml, path


def test_reference_file_is_valid_toml_with_every_comment_taken_away() -> None:
    lines = (REPOSITORY / "serve.toml").read_text(encoding="utf-8").splitlines()
    active = [re.sub(r"^# (?=\w+ = |\[)", "", line) for line in lines]
    assert set(tomli.loads("\n".join(active))) == set(schema.TABLES)


def test_documented_configuration_is_up_to_date() -> None:
    script = REPOSITORY / "scripts" / "generate-configuration"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# Defaults, and what is read back.


def test_one_key_is_enough(loader: Loader) -> None:
    loaded = loader.load(MINIMAL)
    assert loaded.text("app.target") == "hello:app"
    assert loaded.text("app.directory") == str(loader.folder)
    assert loaded.strings("listen.bind") == ["127.0.0.1:8000"]
    assert loaded.integer("concurrency.threads") == 32
    assert loaded.integer("limits.body") == 1024**3
    assert loaded.seconds("timeouts.keep_alive") == 75.0


def test_resolved_config_loads_to_the_same(loader: Loader, tmp_path: Path) -> None:
    (tmp_path / 'a $dir "quoted" \\ é').mkdir()
    first = loader.load(
        """
        app.target = "shop.wsgi:create_app()"
        app.directory = 'a $$dir "quoted" \\ é'
        listen.bind = ["[::1]:8000", "unix:run/app$${x}.sock", "fd://3"]
        listen.unix_mode = 0o640
        limits.body = 1000
        limits.head = "32 KiB"
        timeouts.head = 1
        timeouts.drain = 0.001
        log.level = "error"
        """
    )
    printed = first.to_toml()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "printed.toml").write_text(printed, encoding="utf-8")
    second = config.load(str(elsewhere / "printed.toml"), environment={})
    assert second._values == first._values
    assert second.to_toml() == printed
    assert second.strings("listen.bind")[1] == f"unix:{tmp_path}/run/app${{x}}.sock"


def test_relative_paths_are_relative_to_the_file(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    (loader.folder / "source").mkdir()
    monkeypatch.chdir("/")
    loaded = loader.load(
        '[app]\ntarget = "a:b"\ndirectory = "source"\n[listen]\nbind = "unix:app.sock"'
    )
    assert loaded.text("app.directory") == str(loader.folder / "source")
    assert loaded.strings("listen.bind") == [f"unix:{loader.folder}/app.sock"]


def test_byte_order_mark_is_passed_over(loader: Loader) -> None:
    assert loader.load("\ufeff" + MINIMAL).text("app.target") == "hello:app"


# Files that cannot be read.


def test_missing_file_says_how_to_name_or_write_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^serve.toml: no such file in .*; name .* -c, or write"):
        config.load()


def test_directory_and_unreadable_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        config.load(str(tmp_path))
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin.toml: not UTF-8 \(at byte 5\)"):
        config.load(str(tmp_path / "latin.toml"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[app]\ntarget = \n", "serve.toml:2:10"),
        ("[app]\ntarget = 'a:b'\ntarget = 'a:b'\n", "serve.toml:3:"),
        ("[app]\ntarget 'a:b'\n", "serve.toml:2:8"),
        ("[app]\ntarget = 'a:b'\n[limits]\nfields = [1,\n", "serve.toml:"),
    ],
)
def test_broken_toml_names_file_line_and_column(loader: Loader, text: str, place: str) -> None:
    (problem,) = loader.refuse(text)
    assert problem.startswith(place)
    assert "not valid TOML" in problem


def test_toml_that_is_nested_too_deeply_is_refused(loader: Loader) -> None:
    (problem,) = loader.refuse("a = " + "[" * 100_000)
    assert "not valid TOML" in problem


# Unknown keys, and keys of which the function does not exist yet.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[listen]\nbnd = 1\n",
            'serve.toml:4: listen.bnd: unknown key; did you mean "listen.bind"?',
        ),
        (
            "[listen]\nthreads = 1\n",
            'serve.toml:4: listen.threads: unknown key; did you mean "concurrency.threads"?',
        ),
        (
            "[limits]\n\nxyzzy = 1\n",
            "serve.toml:5: limits.xyzzy: unknown key; the keys of [limits] are connections, "
            "request_line, head, fields, body, body_memory, requests_per_connection, "
            "response_memory, buffer_memory, requests, requests_jitter, memory",
        ),
        ("[limit]\n", 'serve.toml:3: limit: unknown table; did you mean "[limits]"?'),
        (
            "[xyzzy]\n",
            "serve.toml:3: xyzzy: unknown table; the tables are app, listen, concurrency, limits, "
            "timeouts, proxy, log, admin, telemetry, static",
        ),
        (
            "[limits]\n'a b\\n\"' = 1\n",
            'serve.toml:4: limits."a b\\\\n\\"": unknown key; the keys of [limits] are '
            "connections, request_line, head, fields, body, body_memory, requests_per_connection, "
            "response_memory, buffer_memory, requests, requests_jitter, memory",
        ),
        ("[limits.body.x]\n", "serve.toml:3: limits.body: found a table; allowed is a size"),
        ("[[limits]]\n", "serve.toml:3: limits: found a list; allowed is a table, [limits]"),
    ],
)
def test_unknown_key_names_the_nearest(loader: Loader, text: str, problem: str) -> None:
    (found,) = loader.refuse(MINIMAL + text)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("threads = 4\n", 'threads: unknown key; did you mean "concurrency.threads"?'),
        ("limits = 4\n", "limits: found the integer 4; allowed is a table, [limits]"),
        ("qqqqqq = 4\n", "qqqqqq: unknown key; each key stands in one of the tables app, listen"),
    ],
)
def test_key_outside_of_a_table_is_refused(loader: Loader, text: str, problem: str) -> None:
    (found,) = loader.refuse(text + MINIMAL)
    assert found.startswith(f"serve.toml:1: {problem}")


# Proxies.


@pytest.mark.parametrize(
    ("written", "networks"),
    [
        ("[]", []),
        ('"10.0.0.0/8"', ["10.0.0.0/8"]),
        ('"10.0.0.0/8, unix"', ["10.0.0.0/8", "unix"]),
        ('["192.0.2.1", "192.0.2.2/32"]', ["192.0.2.1", "192.0.2.2"]),
        ('["0.0.0.0/0", "::/0"]', ["0.0.0.0/0", "::/0"]),
        ('["2001:DB8:0::/32", "::1"]', ["2001:db8::/32", "::1"]),
        ('"::ffff:10.0.0.0/104"', ["::ffff:a00:0/104"]),
        ('["unix"]', ["unix"]),
        ('"${NETWORKS}"', ["10.0.0.0/8", "fd00::/8"]),
        ('["${NETWORK}", "unix"]', ["192.0.2.0/24", "unix"]),
        ('"${NOTHING:-}"', []),
    ],
)
def test_trusted_proxies(loader: Loader, written: str, networks: list[str]) -> None:
    environment = {"NETWORKS": "10.0.0.0/8, fd00::/8", "NETWORK": "192.0.2.0/24"}
    loaded = loader.load(f"{MINIMAL}[proxy]\ntrusted = {written}\n", environment=environment)
    found = loaded.strings("proxy.trusted")
    # Older Pythons write an IPv4-mapped address without dots.
    assert [one.replace("::ffff:10.0.0.0", "::ffff:a00:0") for one in found] == networks


@pytest.mark.parametrize(
    "text",
    [
        "localhost",
        "10.0.0.300",
        "10.0.0",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/",
        "10.0.0.0/08",
        "10.0.0.0/255.0.0.0",
        "010.0.0.1",
        "fe80::1%eth0",
        "[::1]",
        "127.0.0.1:80",
        "unix:/run/app.sock",
        "UNIX",
        "1",
        "*",
        " ",
        "10.0.0.1\n",
        "\u0661.1.1.1",
    ],
)
def test_trusted_proxy_that_is_none(loader: Loader, text: str) -> None:
    (problem,) = loader.refuse(f"{MINIMAL}[proxy]\ntrusted = [{toml_string(text)}]\n")
    shown = toml_string(text.strip(" "))
    assert problem.startswith(f'serve.toml:4: proxy.trusted: found {shown}; write an address ("')


def toml_string(text: str) -> str:
    """Return the text as a TOML string with what cannot be printed escaped."""
    return '"' + text.replace("\n", "\\n") + '"'


def test_trusted_range_with_bits_beyond_its_prefix(loader: Loader) -> None:
    (problem,) = loader.refuse(f'{MINIMAL}[proxy]\ntrusted = "10.1.2.3/8"\n')
    assert problem == (
        'serve.toml:4: proxy.trusted: found "10.1.2.3/8", which has bits set beyond its prefix; '
        'write "10.0.0.0/8" for the range, or "10.1.2.3" for the address'
    )


def test_trusted_proxy_given_twice(loader: Loader) -> None:
    (problem,) = loader.refuse(f'{MINIMAL}[proxy]\ntrusted = ["::1", "0::1/128"]\n')
    assert problem == 'serve.toml:4: proxy.trusted: "::1" is given twice; remove one'
    (problem,) = loader.refuse(f"{MINIMAL}[proxy]\ntrusted = [1]\n")
    assert "proxy.trusted: found the integer 1 in the list; allowed is one string" in problem


def test_proxy_protocol_needs_somebody_to_speak_it(loader: Loader) -> None:
    (problem,) = loader.refuse(f"{MINIMAL}[proxy]\nprotocol = true\n")
    assert problem.startswith("serve.toml:4: proxy.protocol: nobody is asked for a PROXY header")
    loaded = loader.load(f'{MINIMAL}[proxy]\nprotocol = true\ntrusted = "unix"\n')
    assert loaded.boolean("proxy.protocol") is True


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("", False)])
def test_boolean_of_a_variable(loader: Loader, text: str, value: bool) -> None:
    config_text = f"{MINIMAL}[proxy]\ntrusted = 'unix'\nprotocol = '${{P:-false}}'\n"
    loaded = loader.load(config_text, environment={"P": text})
    assert loaded.boolean("proxy.protocol") is value


@pytest.mark.parametrize("text", ["yes", "1", "True", "on"])
def test_boolean_that_is_none(loader: Loader, text: str) -> None:
    config_text = f"{MINIMAL}[proxy]\ntrusted = 'unix'\nprotocol = '${{P}}'\n"
    (problem,) = loader.refuse(config_text, environment={"P": text})
    assert f'proxy.protocol: found the string "{text}"; allowed is true or false' in problem
    (problem,) = loader.refuse(f"{MINIMAL}[proxy]\nprotocol = 'true'\n")
    assert 'proxy.protocol: found the string "true"; allowed is true or false' in problem


def test_every_mistake_is_reported_at_once(loader: Loader) -> None:
    problems = loader.refuse("[listen]\nbnd = 1\nbacklog = 0\n[limits]\nnothing = 1\n")
    assert [problem.split(": ")[1] for problem in problems] == [
        "listen.bnd",
        "limits.nothing",
        "app.target",
        "listen.backlog",
    ]
    assert problems[2] == (
        'serve.toml: app.target: missing; it must be given: a string such as "package.module:'
        'callable", or "package.module:create_app()" for a factory'
    )


# Types and ranges.


def test_wrong_types_are_refused_for_every_key(loader: Loader) -> None:
    for key in schema.KEYS:
        right: tuple[str, ...] = ()
        if key.path in ("proxy.trusted", "log.access_exclude", "admin.hosts"):
            right = ("[]",)
        if isinstance(key.kind, kinds.Boolean):
            right = ("true", "false")
        is_array = key.table in schema.ARRAYS
        header = f"[[{key.table}]]" if is_array else f"[{key.table}]"
        path = f"{key.table}.0.{key.name}" if is_array else key.path
        for written, found in [
            ("true", "the boolean true"),
            ("false", "the boolean false"),
            ("nan", "the number nan"),
            ("inf", "the number inf"),
            ("-inf", "the number -inf"),
            ("-1", "the integer -1"),
            ("99999999999999999999999", "an integer beyond 64 bits"),
            ("{ a = 1 }", "a table"),
            ("2024-01-01", "a date or time"),
            ("[]", "an empty list"),
            ("[[1]]", "a list"),
            ('""', 'the string ""'),
        ]:
            if written in right or (written == '""' and key.default == ""):
                continue
            base = "" if key.table == "app" else MINIMAL
            text = f"{base}{header}\n{key.name} = {written}\n"
            problems = [one for one in loader.refuse(text) if "missing" not in one]
            assert len(problems) == 1, (key.path, written)
            line = 2 if key.table == "app" else 4
            assert problems[0].startswith(f"serve.toml:{line}: {path}: "), problems
            if not isinstance(
                key.kind, kinds.Addresses | kinds.Networks | kinds.Paths | kinds.Hosts
            ):
                assert f": found {found}; allowed is {key.kind.allowed}" in problems[0]


@pytest.mark.parametrize("path", ["health", "", "/a b", "/a?b", "/a#b", "/é", "*"])
def test_path_that_no_request_has_is_refused(loader: Loader, path: str) -> None:
    (problem,) = loader.refuse(f"{MINIMAL}[log]\naccess_exclude = ['{path}']\n")
    assert problem.startswith("serve.toml:4: log.access_exclude: found the string ")
    (problem,) = loader.refuse(f"{MINIMAL}[log]\naccess_exclude = ['/a', '/a']\n")
    assert problem.endswith('log.access_exclude: "/a" is given twice; remove one')


def test_log_file_is_relative_to_the_config(loader: Loader) -> None:
    assert loader.load(MINIMAL).text("log.access") == "off"
    (loader.folder / "logs").mkdir()
    loaded = loader.load(f"{MINIMAL}[log]\naccess = 'logs/../access.log'\n")
    assert loaded.text("log.access") == str(loader.folder / "access.log")
    for name in ("missing/access.log", "logs"):
        (problem,) = loader.refuse(f"{MINIMAL}[log]\naccess = '{name}'\n")
        assert problem == (
            f"serve.toml:4: log.access: {loader.folder / name} cannot be a log file; name a file "
            'in a directory that is there, or "stdout", "stderr", "off"'
        )


def ranges() -> list[tuple[str, object, object]]:
    """Return each key with a range: the least and the most that it takes."""
    return [
        (key.path, key.kind.least, key.kind.most)
        for key in SINGLE
        if isinstance(key.kind, kinds.Integer | kinds.Seconds | kinds.Size)
    ]


@pytest.mark.parametrize(("path", "least", "most"), ranges())
def test_range_holds_at_its_edges(loader: Loader, path: str, least: float, most: float) -> None:
    # Some depend on each other.
    others = {
        "limits.request_line": "limits.head=16777216",
        "limits.requests_jitter": "limits.requests=1",
    }.get(path, "log.level=info")
    for value in (least, most):
        assert loader.load(MINIMAL, others, f"{path}={value}")._values[path] == value
    step = 1 if isinstance(least, int) else 0.00001
    for value in (least - step, most + step):
        (problem,) = loader.refuse(MINIMAL, others, f"{path}={value}")
        assert problem.startswith(f"--set: {path}: found the ")
        assert "; allowed is a" in problem


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("4096", 4096),
        ('"512 B"', 512),
        ('"512B"', 512),
        ('"16 KiB"', 16 * 1024),
        ('"16KiB"', 16 * 1024),
        ('"1 MiB"', 1024**2),
        ('"1 GiB"', 1024**3),
        ('"1 TiB"', 1024**4),
        ('"10 kB"', 10_000),
        ('"10 KB"', 10_000),
        ('"10 MB"', 10 * 1000**2),
        ('"1 GB"', 1000**3),
        ('"1 TB"', 1000**4),
    ],
)
def test_sizes(loader: Loader, written: str, size: int) -> None:
    loaded = loader.load(f"{MINIMAL}[limits]\nbody = {written}\n")
    assert loaded.integer("limits.body") == size


@pytest.mark.parametrize(
    "written",
    [
        '"16"',
        '"16 kib"',
        '"16  KiB"',
        '"KiB"',
        '"-1 KiB"',
        '"1.5 MiB"',
        '"1 MiB "',
        "1.0",
        '"٣ KiB"',
    ],
)
def test_sizes_that_are_none(loader: Loader, written: str) -> None:
    (problem,) = loader.refuse(f"{MINIMAL}[limits]\nbody = {written}\n")
    assert re.search(
        r'limits.body: found the .*; allowed is a size from 1 B to 8 TiB: .*"16 KiB"', problem
    )


def test_times_are_floats_or_integers(loader: Loader) -> None:
    loaded = loader.load(MINIMAL + "[timeouts]\nhead = 5\nbody = 0.25\n")
    assert loaded.seconds("timeouts.head") == 5.0
    assert isinstance(loaded.seconds("timeouts.head"), float)
    assert loaded.seconds("timeouts.body") == 0.25


def test_unix_mode_is_octal(loader: Loader) -> None:
    assert loader.load(MINIMAL + "[listen]\nunix_mode = 0o660").integer("listen.unix_mode") == 0o660
    for decimal in (600, 640, 660, 666, 700, 755, 777):
        (problem,) = loader.refuse(f"{MINIMAL}[listen]\nunix_mode = {decimal}\n")
        assert f"found the integer {decimal}; allowed is an octal integer" in problem


def test_long_strings_are_cut_in_messages(loader: Loader) -> None:
    (problem,) = loader.refuse(f"{MINIMAL}[log]\nlevel = '{'x' * 500}'\n")
    assert len(problem) < 200


def test_control_characters_are_escaped_in_messages(loader: Loader) -> None:
    (problem,) = loader.refuse(MINIMAL + '[log]\nlevel = "\\u001b[2J\\n\\u009b\\u2028"\n')
    assert 'found the string "\\u001B[2J\\n\\u009B\\u2028"' in problem


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("hello", 'found "hello", which has no colon'),
        ("hello.py", 'found a file name, "hello.py"'),
        ("src/hello.py:app", "whose module is a file name"),
        ("hello:", 'where "" is not a name'),
        (":app", 'where "" is not a module name'),
        ("a..b:app", 'where "a..b" is not a module name'),
        ("a b:app", 'where "a b" is not a module name'),
        ("hello:app.", 'where "app." is not a name'),
        ("hello:app(", 'where "app(" is not a name'),
        ("hello:app)", 'where "app)" is not a name'),
        ("hello:app()()", "a factory is called without arguments"),
        ('hello:make("x")', "a factory is called without arguments"),
        ("hello:a:b", 'where "a:b" is not a name'),
    ],
)
def test_targets_that_are_none(loader: Loader, target: str, why: str) -> None:
    (problem,) = loader.refuse(f"[app]\ntarget = '{target}'\n")
    assert problem.startswith("serve.toml:2: app.target: ")
    assert why in problem
    assert ":callable" in problem or "dotted name" in problem or "needs none" in problem


def test_directory_must_exist(loader: Loader) -> None:
    (problem,) = loader.refuse(MINIMAL + 'directory = "gone"\n')
    assert problem.startswith(f"serve.toml:3: app.directory: {loader.folder}/gone is not a dir")


def test_request_line_is_part_of_the_head(loader: Loader) -> None:
    (problem,) = loader.refuse(MINIMAL + "[limits]\nhead = '4 KiB'\nrequest_line = '5 KiB'\n")
    assert problem == (
        "serve.toml:5: limits.request_line: 5 KiB is more than limits.head allows, 4 KiB; the "
        "line is part of the head"
    )
    # Who lowers the head alone means both.
    loaded = loader.load(MINIMAL + "[limits]\nhead = '4 KiB'\n")
    assert loaded.integer("limits.request_line") == 4096


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ('["127.0.0.1:80", 5]', "found the integer 5 in the list"),
        ('["127.0.0.1:80", "127.0.0.1:80"]', '"127.0.0.1:80" is given twice; remove one'),
        ("[]", "found an empty list"),
        ('"8000"', 'for all of them write ":8000"'),
        ('"x\\n[y]"', 'found "x\\n[y]", which has no port; write "x\\n[y]:8000"'),
    ],
)
def test_bind_lists_that_are_refused(loader: Loader, written: str, why: str) -> None:
    (problem,) = loader.refuse(f"{MINIMAL}[listen]\nbind = {written}\n")
    assert problem.startswith("serve.toml:4: listen.bind: ")
    assert why in problem


def test_unix_path_has_a_length(loader: Loader) -> None:
    (problem,) = loader.refuse(f"{MINIMAL}[listen]\nbind = 'unix:{'x' * 108}'\n")
    assert "listen.bind" in problem
    assert "is too long for a unix socket; allowed are 10" in problem


# Environment variables.


def test_variables_in_strings_numbers_and_lists(loader: Loader) -> None:
    loaded = loader.load(
        MINIMAL
        + """
        [listen]
        bind = ["${HOST:-127.0.0.1}:${PORT}", "unix:${NONE:-run}/a.sock"]
        unix_mode = "${MODE:-0o600}"
        [concurrency]
        threads = "${THREADS}"
        queue_timeout = "${WAIT:-2.5}"
        [limits]
        body = "${BODY:-1 MiB}"
        head = "${HEAD:-4096}"
        [log]
        level = "${LEVEL:-error}"
        """,
        environment={"PORT": "9000", "THREADS": "8", "HOST": ""},
    )
    assert loaded.strings("listen.bind") == [
        "127.0.0.1:9000",
        f"unix:{loader.folder}/run/a.sock",
    ]
    assert loaded.integer("listen.unix_mode") == 0o600
    assert loaded.integer("concurrency.threads") == 8
    assert loaded.seconds("concurrency.queue_timeout") == 2.5
    assert loaded.integer("limits.body") == 1024**2
    assert loaded.integer("limits.head") == 4096
    assert loaded.text("log.level") == "error"


def test_unset_variable_names_key_and_variable(loader: Loader) -> None:
    (problem,) = loader.refuse(MINIMAL + '[listen]\nbind = ":${PORT}"\n')
    assert problem == (
        "serve.toml:4: listen.bind: the environment variable PORT is not set; set it, or give a "
        "default: ${PORT:-default}"
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("concurrency.threads", "many"),
        ("concurrency.threads", "8.0"),
        ("concurrency.threads", "8_0"),
        ("concurrency.threads", " 8"),
        ("concurrency.threads", "٨"),
        ("concurrency.threads", "0"),
        ("timeouts.head", "nan"),
        ("timeouts.head", "inf"),
        ("timeouts.head", "1e400"),
        ("timeouts.head", "1_0"),
        ("limits.body", "1.5 MiB"),
        ("limits.body", "0"),
        ("listen.unix_mode", "0o888"),
        ("listen.unix_mode", "7777"),
    ],
)
def test_variable_of_a_number_is_checked(loader: Loader, path: str, value: str) -> None:
    table, name = path.split(".")
    (problem,) = loader.refuse(f'{MINIMAL}[{table}]\n{name} = "${{X}}"\n', environment={"X": value})
    assert problem.startswith(f"serve.toml:4: {path}: found the ")
    assert problem.endswith('(written as "${X}")')


def test_number_in_a_plain_string_is_no_number(loader: Loader) -> None:
    (problem,) = loader.refuse(MINIMAL + '[concurrency]\nthreads = "8"\n')
    assert 'concurrency.threads: found the string "8"; allowed is an integer' in problem


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("${A}", "a"),
        ("x${A}y${A}z", "xayaz"),
        ("${EMPTY}", ""),
        ("${EMPTY:-d}", "d"),
        ("${NONE:-}", ""),
        ("${NONE:-a:-b}", "a:-b"),
        ("${NONE:-$}", "$"),
        ("$A $ $", "$A $ $"),
        ("$$", "$"),
        ("$$$$", "$$"),
        ("$${A}", "${A}"),
        ("$$${A}", "$a"),
        ("${TRAP}", "${A}"),
    ],
)
def test_expansion(text: str, expanded: str) -> None:
    environment = {"A": "a", "EMPTY": "", "TRAP": "${A}"}
    assert expand(text, environment) == expanded
    assert expand(escape(text), environment) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("${A", r'"\$\{A" has no closing brace'),
        ("${", "has no closing brace"),
        ("${}", "does not name an environment variable"),
        ("${A B}", "does not name an environment variable"),
        ("${1A:-x}", "does not name an environment variable"),
        ("${A:=x}", "does not name an environment variable"),
        ("${NONE:-${A}}", "holds another variable"),
        ("${BYTES}", "BYTES is not valid UTF-8"),
        ("${NONE}", "NONE is not set"),
    ],
)
def test_expansion_that_fails(text: str, why: str) -> None:
    with pytest.raises(InterpolationError, match=why):
        expand(text, {"A": "a", "BYTES": "\udcff"})


# --set.


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("listen.bind=127.0.0.1:9000", "listen.bind", ["127.0.0.1:9000"]),
        ("listen.bind=[::1]:9000", "listen.bind", ["[::1]:9000"]),
        ("listen.bind=[':1', ':2']", "listen.bind", [":1", ":2"]),
        ("concurrency.threads=4", "concurrency.threads", 4),
        (" concurrency.threads = 4 ", "concurrency.threads", 4),
        ("timeouts.head=2", "timeouts.head", 2.0),
        ("limits.body=2 MiB", "limits.body", 2 * 1024**2),
        ("limits.body='2 MiB'", "limits.body", 2 * 1024**2),
        ("log.level=warning", "log.level", "warning"),
        ("app.target=other:create_app()", "app.target", "other:create_app()"),
        ("concurrency.threads=${N:-6}", "concurrency.threads", 6),
        ("listen.unix_mode=0o600", "listen.unix_mode", 0o600),
    ],
)
def test_override(loader: Loader, override: str, path: str, value: object) -> None:
    assert loader.load(MINIMAL, override)._values[path] == value


def test_last_override_of_a_key_counts(loader: Loader) -> None:
    loaded = loader.load(MINIMAL, "limits.fields=1", "limits.fields=2")
    assert loaded.integer("limits.fields") == 2


def test_override_mends_what_is_wrong_in_the_file(loader: Loader) -> None:
    loaded = loader.load(MINIMAL + "[limits]\nfields = 'x'\n", "limits.fields=2")
    assert loaded.integer("limits.fields") == 2


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("limits.fields", 'the string "limits.fields" has no equals sign'),
        ("limits.feilds=1", 'limits.feilds: unknown key; did you mean "limits.fields"?'),
        ("limit.fields=1", 'limit.fields: unknown table; did you mean "[limits]"?'),
        ("threads=1", 'threads: unknown key; did you mean "concurrency.threads"?'),
        ("listen={}", "listen: a table; name one of its keys: listen.bind, listen.backlog"),
        ("limits.fields=many", 'limits.fields: found the string "many"; allowed is an integer'),
        ("limits.fields=true", "limits.fields: found the boolean true; allowed is an integer"),
        ("limits.fields=1\nlog.level='error'", "limits.fields: found the string"),
        ("log.level='error", "log.level: not valid TOML: "),
        ("listen.bind=${NO}", "listen.bind: the environment variable NO is not set"),
        ("app.directory=gone", "app.directory: "),
        ("a\x1b.b=1", "a\\u001B.b: unknown table"),
    ],
)
def test_override_that_is_refused(loader: Loader, override: str, problem: str) -> None:
    (found,) = loader.refuse(MINIMAL, override)
    assert found.startswith(f"--set: {problem}")


# Helpers of the messages.


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a", "x"), 3),
        (("a", "y"), 4),
        (("a", "z"), 9),
        (("a",), 2),
        (("b", "c", "d"), 15),
        (("rows", "k"), 17),
        (("none",), None),
    ],
)
def test_line_of_a_key(path: tuple[str, ...], line: int | None) -> None:
    text = (
        "# comment\n[a]\nx = 1\ny = [1,\n  2,\n]\n\n# z = 1\nz = '''\n[b]\nc = 1\n'''\n\n"
        "[b]\nc.d = { e = 1 }\n[[rows]]\nk = 1\n"
    )
    assert line_of(text, path) == line


def test_line_of_a_key_is_not_sought_in_a_huge_file() -> None:
    assert line_of("\n" * 3000 + "a = 1\n", ("a",)) is None


def test_nearest_name() -> None:
    assert nearest("thread", ["threads", "queue"]) == "threads"
    assert nearest("zzz", ["threads", "queue"]) is None


def test_schema_names_each_key_once_in_a_known_table() -> None:
    assert len(schema.KEYS_BY_PATH) == len(schema.KEYS)
    assert {key.table for key in schema.KEYS} == set(schema.TABLES)
    for key in schema.KEYS:
        assert key.documentation.endswith(".") or key.documentation.endswith(").")
        if key.default is not None:
            assert key.kind.parse(tomli.loads(f"x = {key.default_toml}")["x"]) == key.default


# For whom the admin listener answers.


@pytest.mark.parametrize(
    ("written", "hosts"),
    [
        ('"App.Internal"', ["app.internal"]),
        ('["a", "192.0.2.7", "[::1]", "*"]', ["a", "192.0.2.7", "[::1]", "*"]),
    ],
)
def test_admin_hosts(loader: Loader, written: str, hosts: list[str]) -> None:
    text = f"{MINIMAL}[admin]\nhosts = {written}\n"
    assert loader.load(text).strings("admin.hosts") == hosts


@pytest.mark.parametrize(
    "host", ["a:80", "http://a", "a/b", "", "::1", "1.2.3", "a b", "unix:/x", "a\\nb"]
)
def test_admin_hosts_have_no_port(loader: Loader, host: str) -> None:
    (problem,) = loader.refuse(f'{MINIMAL}[admin]\nhosts = ["{host}"]\n')
    assert "admin.hosts" in problem
    assert "without a port" in problem
