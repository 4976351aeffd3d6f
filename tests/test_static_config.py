"""[[static]] in serve.toml and --set: what is accepted, what is refused, what --check prints."""

from pathlib import Path

import pytest
import tomli

from serve_zig import config
from serve_zig.errors import ConfigError
from serve_zig.static_tables import core_tables
from serve_zig.toml_location import line_of

MINIMAL = '[app]\ntarget = "hello:app"\n'
ONE = MINIMAL + '[[static]]\nroute = "/s"\ndirectory = "files"\n'


class Loader:
    """Loads configs from a folder with two directories of files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "serve.toml"
        for name in ("files", "more"):
            (folder / name).mkdir()

    def load(
        self, text: str, *overrides: str, environment: dict[str, str] | None = None
    ) -> config.Config:
        """Return the config that ``text`` and the overrides make."""
        self.file.write_text(text, encoding="utf-8")
        return config.load(str(self.file), overrides, environment or {})

    def refuse(self, text: str, *overrides: str) -> list[str]:
        """Return the problems, with the folder cut out of them."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, *overrides)
        assert caught.value.exit_status == 2
        return [problem.replace(f"{self.folder}/", "") for problem in caught.value.problems]


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    """Return a loader in a folder of the test's own."""
    return Loader(tmp_path)


def test_none_is_the_default(loader: Loader) -> None:
    loaded = loader.load(MINIMAL)
    assert loaded.count("static") == 0
    assert core_tables(loaded) == []
    assert "static" not in loaded.to_toml()


def test_tables_with_every_key_and_with_those_that_must_be(loader: Loader) -> None:
    text = ONE + (
        '[[static]]\nroute = "/"\ndirectory = "${MORE}"\ncache_control = "no-cache"\n'
        'index = "index.html"\nfallthrough = true\n'
    )
    loaded = loader.load(text, environment={"MORE": "more"})
    assert core_tables(loaded) == [
        ("/s", str(loader.folder / "files"), "", "", False),
        ("/", str(loader.folder / "more"), "no-cache", "index.html", True),
    ]
    assert loaded.place("static.1.index") == f"{loader.file}:10: static.1.index"


def test_what_check_prints_loads_to_the_same(loader: Loader, tmp_path: Path) -> None:
    text = ONE + '[[static]]\nroute = "/m"\ndirectory = "more"\nfallthrough = true\n'
    loaded = loader.load(text)
    printed = loaded.to_toml()
    assert tomli.loads(printed)["static"] == [
        {
            "route": "/s",
            "directory": str(loader.folder / "files"),
            "cache_control": "",
            "index": "",
            "fallthrough": False,
        },
        {
            "route": "/m",
            "directory": str(loader.folder / "more"),
            "cache_control": "",
            "index": "",
            "fallthrough": True,
        },
    ]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "serve.toml").write_text(printed, encoding="utf-8")
    again = config.load(str(elsewhere / "serve.toml"), environment={})
    assert core_tables(again) == core_tables(loaded)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('route = "/s"', "serve.toml:3: static.0.directory: missing; it must be given: a string"),
        ('directory = "files"', "serve.toml:3: static.0.route: missing; it must be given: a st"),
        (
            'route = "s"\ndirectory = "files"',
            'serve.toml:4: static.0.route: "s" does not begin with a slash; write the path that',
        ),
        (
            'route = "/a?b"\ndirectory = "files"',
            'serve.toml:4: static.0.route: "/a?b" holds a character that no route may hold;',
        ),
        (
            'route = "/a%20b"\ndirectory = "files"',
            'serve.toml:4: static.0.route: "/a%20b" holds a character that no route may hold;',
        ),
        (
            'route = "/a/../b"\ndirectory = "files"',
            'serve.toml:4: static.0.route: "/a/../b" has an empty segment or a dot segment;',
        ),
        (
            'route = "/a//b"\ndirectory = "files"',
            'serve.toml:4: static.0.route: "/a//b" has an empty segment or a dot segment;',
        ),
        (
            f'route = "/{"a" * 1024}"\ndirectory = "files"',
            "serve.toml:4: static.0.route: a route may have 1024 bytes; write a shorter one",
        ),
        (
            'route = "/s"\ndirectory = "none"',
            "serve.toml:5: static.0.directory: none does not exist; name the directory that holds",
        ),
        (
            'route = "/s"\ndirectory = "serve.toml"',
            "serve.toml:5: static.0.directory: serve.toml is not a directory; name the directory",
        ),
        (
            'route = "/s"\ndirectory = "files"\ncache_control = "a\\nb"',
            "serve.toml:6: static.0.cache_control: a Cache-Control field holds printable ASCII",
        ),
        (
            f'route = "/s"\ndirectory = "files"\ncache_control = "{"a" * 256}"',
            "serve.toml:6: static.0.cache_control: a Cache-Control field may have 255 bytes;",
        ),
        (
            'route = "/s"\ndirectory = "files"\nindex = "a/b"',
            'serve.toml:6: static.0.index: "a/b" is not the name of a file that would be served',
        ),
        (
            'route = "/s"\ndirectory = "files"\nindex = ".html"',
            'serve.toml:6: static.0.index: ".html" is not the name of a file that would be served',
        ),
        (
            f'route = "/s"\ndirectory = "files"\nindex = "{"ä" * 128}"',
            "serve.toml:6: static.0.index: the name of a file may have 255 bytes; shorten it",
        ),
        (
            'route = "/s"\ndirectory = "files"\nfallthrough = "yes"',
            'serve.toml:6: static.0.fallthrough: found the string "yes"; allowed is true or false',
        ),
        (
            'route = "/s"\ndirectory = "files"\nfall_through = true',
            'serve.toml:6: static.0.fall_through: unknown key; did you mean "static.fallthrough"?',
        ),
        (
            'route = "/s"\ndirectory = "files"\nthreads = 1',
            'serve.toml:6: static.0.threads: unknown key; did you mean "concurrency.threads"?',
        ),
    ],
)
def test_mistakes(loader: Loader, lines: str, problem: str) -> None:
    (found,) = loader.refuse(f"{MINIMAL}[[static]]\n{lines}\n")
    assert found.startswith(problem)


def test_limits_hold_at_their_edges(loader: Loader) -> None:
    loaded = loader.load(
        f'{MINIMAL}[[static]]\nroute = "/{"a" * 1023}"\ndirectory = "files"\n'
        f'cache_control = "{"a" * 255}"\nindex = "{"b" * 255}"\n'
    )
    assert len(loaded.text("static.0.route")) == 1024


def test_mistakes_are_told_by_the_table_in_which_they_are(loader: Loader) -> None:
    text = ONE + '[[static]]\nroute = "m"\ndirectory = "more"\n[[static]]\nroute = "/s/"\n'
    assert [problem.partition(": ")[2].partition(":")[0] for problem in loader.refuse(text)] == [
        "static.1.route",
        "static.2.directory",
    ]


def test_routes_stand_once(loader: Loader) -> None:
    text = ONE + '[[static]]\nroute = "/s/"\ndirectory = "more"\n'
    (problem,) = loader.refuse(text)
    assert problem == (
        'serve.toml:7: static.1.route: the route "/s/" is that of static.0, too; remove one of '
        "the tables"
    )


def test_as_many_tables_as_there_may_be_and_one_more(loader: Loader) -> None:
    def tables(count: int) -> str:
        return MINIMAL + "".join(
            f'[[static]]\nroute = "/{number}"\ndirectory = "files"\n' for number in range(count)
        )

    assert loader.load(tables(64)).count("static") == 64
    (problem,) = loader.refuse(tables(65))
    assert problem == "serve.toml:3: static: 65 tables; allowed are 64"


@pytest.mark.parametrize("text", ["[static]\nroute = '/s'\n", "static = 1\n", "static = [1]\n"])
def test_what_is_no_list_of_tables(loader: Loader, text: str) -> None:
    order = text + MINIMAL if text.startswith("static") else MINIMAL + text
    (problem,) = loader.refuse(order)
    assert "static: found " in problem
    assert problem.endswith("; allowed are tables, [[static]]")


# --set


def test_set_replaces_all_tables(loader: Loader) -> None:
    loaded = loader.load(
        ONE + '[[static]]\nroute = "/t"\ndirectory = "more"\n',
        'static=[{route = "/new", directory = "more", index = "i.html"}]',
    )
    assert core_tables(loaded) == [("/new", str(loader.folder / "more"), "", "i.html", False)]
    assert loader.load(ONE, "static=[]").count("static") == 0


def test_set_changes_one_key_of_one_table(loader: Loader) -> None:
    loaded = loader.load(ONE, "static.0.directory=more", "static.0.fallthrough=true")
    assert core_tables(loaded) == [("/s", str(loader.folder / "more"), "", "", True)]
    assert loaded.place("static.0.directory") == "--set: static.0.directory"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("static.route=/x", "static.route: there may be several of [[static]]; name the key of"),
        ("static.0=/x", "static.0: there may be several of [[static]]; name the key of one of"),
        ("static.1.route=/x", "static.1.route: there are 1 of [[static]], counted from 0; set"),
        ("static.0.rout=/x", 'static.0.rout: unknown key; did you mean "static.route"?'),
        ("static=/x", 'static: found the string "/x"; allowed is a list of tables, such as [{ r'),
        ("static=[1]", "static: found a list; allowed is a list of tables, such as [{ route ="),
        ('static=[{rout = "/x"}]', 'static.0.rout: unknown key; did you mean "static.route"?'),
        ("static.0.route=x", 'static.0.route: "x" does not begin with a slash; write the path'),
        ("static.0.directory=none", "static.0.directory: none does not exist; name the direc"),
    ],
)
def test_mistakes_in_set(loader: Loader, override: str, problem: str) -> None:
    found = loader.refuse(ONE, override)[0]
    assert found.startswith(f"--set: {problem}")


def test_lines_of_tables_in_an_array() -> None:
    text = "[[a]]\nb = 1\n\n[[a]]\nb = 2\n[[a]]\nc = [\n1]\n"
    assert line_of(text, ("a", "0", "b")) == 2
    assert line_of(text, ("a", "1")) == 4
    assert line_of(text, ("a", "1", "b")) == 5
    assert line_of(text, ("a", "2", "c")) == 7
    assert line_of(text, ("a", "3")) is None
