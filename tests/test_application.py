"""The import of app.target: each way in which it fails, and what the user is shown."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from serve_zig import _core, application
from serve_zig.application_traceback import (
    escape_controls,
    format_exception,
    is_launcher_file,
)
from serve_zig.errors import ApplicationError, StartInterruptedError
from serve_zig.target import TargetError, parse_target

PLACE = "serve.toml:2: app.target"

HELLO = """
def app(environ, start_response):
    return []
"""


class Project:
    """A folder of modules with names that no other test has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, package: str = "", **modules: str) -> None:
        """Write modules, into a package where one is named."""
        folder = self.folder / package
        if package:
            folder.mkdir()
            (folder / "__init__.py").touch()
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(dedent(text), encoding="utf-8")
        # The import system remembers what a folder held, as fine as the clock of its files ticks.
        importlib.invalidate_caches()

    def load(self, target: str) -> object:
        """Import the target from the folder."""
        return application.load(parse_target(target), str(self.folder), PLACE)

    def refuse(self, target: str) -> tuple[str, str]:
        """Return the message, less the place with which it begins, and what is shown below."""
        with pytest.raises(ApplicationError) as caught:
            self.load(target)
        assert caught.value.exit_status == 3
        (problem,) = caught.value.problems
        assert problem.startswith(f"{PLACE}: ")
        assert "\n" not in problem
        assert "serve_zig" not in caught.value.detail
        assert "<frozen importlib" not in caught.value.detail
        assert "importlib/__init__.py" not in caught.value.detail
        return problem.removeprefix(f"{PLACE}: "), caught.value.detail


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Return an empty project; sys.path and sys.modules are put back."""
    path, modules = list(sys.path), set(sys.modules)
    yield Project(tmp_path)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


# What is found.


def test_callable_of_a_module(project: Project) -> None:
    project.write(hello=HELLO)
    assert project.load("hello:app") is sys.modules["hello"].app
    assert sys.path[0] == str(project.folder)


def test_directory_comes_first_once(project: Project) -> None:
    project.write(hello=HELLO)
    project.load("hello:app")
    project.load("hello:app")
    assert sys.path.count(str(project.folder)) == 1


def test_module_of_a_package_and_dotted_attribute(project: Project) -> None:
    project.write(
        "shop",
        wsgi="""
        class Site:
            class Inner:
                def __call__(self, environ, start_response):
                    return []
            inner = Inner()
        site = Site()
        """,
    )
    assert callable(project.load("shop.wsgi:site.inner"))


def test_factory(project: Project) -> None:
    project.write(
        made="""
        class Factories:
            @staticmethod
            def create():
                def app(environ, start_response):
                    return [b"made"]
                return app
        """
    )
    found = project.load("made:Factories.create()")
    assert callable(found)
    assert found({}, None) == [b"made"]


@pytest.mark.parametrize(
    "text",
    [
        "def app(*arguments): return []",
        "def app(environ, start_response, extra=None): return []",
        "class app:\n    def __init__(self, environ, start_response): pass",
        "app = print",
        "from functools import partial\napp = partial(print)",
        "app = 'x'.join",
        "class A:\n    def run(self, environ, start_response): return []\napp = A().run",
        "class A:\n    def __call__(self, *rest): return []\napp = A()",
    ],
)
def test_every_kind_of_callable_is_taken(project: Project, text: str) -> None:
    project.write(kinds_of=text)
    assert callable(project.load("kinds_of:app"))


# The module is not found.


def test_module_not_found(project: Project) -> None:
    project.write(hello=HELLO)
    problem, detail = project.refuse("qqqq:app")
    assert problem == (
        f'no module "qqqq" in {project.folder} (app.directory), nor elsewhere on sys.path; mend '
        "app.target or app.directory"
    )
    assert detail == ""


def test_module_not_found_names_the_nearest(project: Project) -> None:
    project.write(hello=HELLO)
    project.write("shop")
    assert project.refuse("helo:app")[0].endswith('; did you mean "hello"?')
    assert project.refuse("shopp.wsgi:app")[0].endswith('; did you mean "shop.wsgi"?')


def test_part_of_a_package_not_found(project: Project) -> None:
    project.write("shop", wsgi=HELLO)
    problem, detail = project.refuse("shop.wsgj:app")
    assert problem == (
        f'no module "shop.wsgj": the package "shop" ({project.folder}/shop/__init__.py) has no '
        '"wsgj"; did you mean "shop.wsgi"?'
    )
    assert detail == ""
    assert 'no "inner"; mend app.target' in project.refuse("shop.inner.wsgi:app")[0]


def test_module_that_is_no_package(project: Project) -> None:
    project.write(hello=HELLO)
    problem, _ = project.refuse("hello.wsgi:app")
    assert problem == (
        f'no module "hello.wsgi": "hello" ({project.folder}/hello.py) is a module, not a package'
    )


def test_import_of_the_application_that_is_not_found_is_its_own_failure(project: Project) -> None:
    project.write(wanting="import not_installed_anywhere\n")
    problem, detail = project.refuse("wanting:app")
    assert problem == (
        "importing \"wanting\" raised ModuleNotFoundError: No module named 'not_installed_anywhere'"
    )
    assert detail == dedent(
        f"""\
        Traceback (most recent call last):
          File "{project.folder}/wanting.py", line 1, in <module>
            import not_installed_anywhere
        ModuleNotFoundError: No module named 'not_installed_anywhere'
        """
    )


def test_module_that_removes_itself_is_its_own_failure(project: Project) -> None:
    project.write(odd="raise ModuleNotFoundError('x', name='odd')\n")
    problem, detail = project.refuse("odd:app")
    assert problem == 'importing "odd" raised ModuleNotFoundError: x'
    assert "odd.py" in detail


# The module is found and fails.


def test_application_that_raises_is_shown_without_the_launchers_frames(project: Project) -> None:
    project.write(
        "failing",
        wsgi="from failing import settings\n",
        settings="""
        def read():
            return {}["SECRET"]
        read()
        """,
    )
    problem, detail = project.refuse("failing.wsgi:app")
    assert problem == "importing \"failing.wsgi\" raised KeyError: 'SECRET'"
    lines = detail.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    files = [line.split('"')[1] for line in lines if line.startswith("  File ")]
    assert [Path(file).name for file in files] == ["wsgi.py", "settings.py", "settings.py"]
    assert lines[-1] == "KeyError: 'SECRET'"


def test_causes_are_shown_without_the_launchers_frames(project: Project) -> None:
    project.write(
        chained="""
        import importlib
        try:
            importlib.import_module("not_installed_anywhere")
        except ImportError as error:
            raise RuntimeError("no driver") from error
        """
    )
    _, detail = project.refuse("chained:app")
    assert "ModuleNotFoundError: No module named 'not_installed_anywhere'" in detail
    assert "RuntimeError: no driver" in detail
    assert detail.count("chained.py") == 2


def test_syntax_error_shows_file_and_line(project: Project) -> None:
    project.write(broken="x = 1\ndef app(:\n")
    problem, detail = project.refuse("broken:app")
    assert problem.startswith('importing "broken" raised SyntaxError: invalid syntax')
    assert f'File "{project.folder}/broken.py", line 2' in detail
    assert "    def app(:" in detail


def test_null_bytes_in_a_module_are_its_own_failure(project: Project) -> None:
    (project.folder / "nulls.py").write_bytes(b"x = 1\0\n")
    problem, _ = project.refuse("nulls:app")
    assert problem.startswith('importing "nulls" raised ')


@pytest.mark.parametrize("code", ["3", "'stop'", "None"])
def test_import_that_ends_the_program(project: Project, code: str) -> None:
    project.write(ending=f"import sys\nsys.exit({code})\n")
    problem, detail = project.refuse("ending:app")
    assert problem == (
        f'importing "ending" ended the program with SystemExit({code}); what a script does '
        'belongs below if __name__ == "__main__"'
    )
    assert "ending.py" in detail
    assert "sys.exit(" in detail


def test_other_base_exceptions_are_reported(project: Project) -> None:
    project.write(base="class Odd(BaseException): pass\nraise Odd('x')\n")
    assert project.refuse("base:app")[0] == 'importing "base" raised Odd: x'


@pytest.mark.parametrize("error", [KeyboardInterrupt, StartInterruptedError])
def test_signals_pass_through(project: Project, error: type[BaseException]) -> None:
    project.write(
        signalled="""
        from serve_zig.errors import StartInterruptedError
        def create():
            raise ERROR
        class Lazy:
            def __getattr__(self, name):
                raise ERROR
        lazy = Lazy()
        """.replace("ERROR", error.__name__)
    )
    with pytest.raises(error):
        project.load("signalled:create()")
    with pytest.raises(error):
        project.load("signalled:lazy.app")
    project.write(
        at_import=f"from serve_zig.errors import StartInterruptedError\nraise {error.__name__}\n"
    )
    with pytest.raises(error):
        project.load("at_import:app")


def test_message_is_one_short_line_without_controls(project: Project) -> None:
    project.write(loud=r"raise ValueError('\x1b[2J' + 'x' * 500 + '\nsecond line')" + "\n")
    problem, detail = project.refuse("loud:app")
    assert problem.startswith(r'importing "loud" raised ValueError: \x1b[2Jxxx')
    assert len(problem) < 300
    assert "\x1b" not in detail
    assert r"\x1b[2Jxxx" in detail


def test_exception_without_a_message(project: Project) -> None:
    project.write(
        mute="""
        class Mute(Exception):
            def __str__(self):
                raise ValueError
        raise Mute
        """
    )
    problem, detail = project.refuse("mute:app")
    assert problem == 'importing "mute" raised Mute: (no message)'
    assert "mute.py" in detail


# The attribute.


def test_attribute_missing_names_the_nearest(project: Project) -> None:
    project.write(named="def application(environ, start_response): return []\n")
    problem, detail = project.refuse("named:aplication")
    assert problem == (
        f'"named" ({project.folder}/named.py) has no "aplication"; did you mean "application"?'
    )
    assert detail == ""
    # "app" is not near, but usual.
    assert project.refuse("named:app")[0].endswith('; did you mean "application"?')


def test_attribute_missing_names_a_usual_factory(project: Project) -> None:
    project.write(factories="def create_app(): return None\n")
    assert project.refuse("factories:xyz")[0].endswith('; did you mean "create_app()"?')


def test_attribute_missing_where_nothing_is_near(project: Project) -> None:
    project.write(bare="value = 1\n")
    assert project.refuse("bare:app")[0].endswith(
        'has no "app"; name the callable that is the application'
    )


def test_inner_attribute_missing(project: Project) -> None:
    project.write(outer="class Site:\n    wsgi = print\nsite = Site()\n")
    assert project.refuse("outer:site.wsgj")[0] == (
        '"outer:site" has no "wsgj"; did you mean "wsgi"?'
    )


def test_attribute_that_raises(project: Project) -> None:
    project.write(lazy="def __getattr__(name):\n    raise OSError('no database')\n")
    problem, detail = project.refuse("lazy:app")
    assert problem == 'reading "app" of "lazy" raised OSError: no database'
    assert "lazy.py" in detail


@pytest.mark.parametrize(
    ("value", "described"),
    [("'text'", "a str"), ("None", "None"), ("1", "an int"), ("__import__('os')", "a module")],
)
def test_not_callable(project: Project, value: str, described: str) -> None:
    project.write(plain=f"app = {value}\ndef create(): return app\n")
    assert project.refuse("plain:app")[0] == (
        f'"plain:app" is not callable, it is {described}; a WSGI application is called with '
        "environ and start_response"
    )
    assert project.refuse("plain:create()")[0].startswith(
        f'what the factory "plain:create()" returned is not callable, it is {described}; '
    )
    assert project.refuse("plain:app()")[0] == (
        f'"plain:app" cannot be called, it is {described}; leave out the () if it is the '
        "application itself"
    )


def test_factory_that_raises(project: Project) -> None:
    project.write(factory="def create():\n    raise OSError('no database')\n")
    problem, detail = project.refuse("factory:create()")
    assert problem == 'calling the factory "factory:create" raised OSError: no database'
    assert detail.startswith("Traceback (most recent call last):\n")
    assert detail.count("  File ") == 1
    assert detail.endswith("OSError: no database\n")


def test_factory_that_raises_a_type_error_of_its_own(project: Project) -> None:
    project.write(factory="def create():\n    return 1 + 'x'\n")
    problem, detail = project.refuse("factory:create()")
    assert problem.startswith('calling the factory "factory:create" raised TypeError: unsupported')
    assert "1 + 'x'" in detail


def test_factory_that_wants_arguments(project: Project) -> None:
    project.write(factory="def create(name): pass\n")
    problem, detail = project.refuse("factory:create()")
    assert problem == (
        'the factory "factory:create" cannot be called without arguments: create() missing 1 '
        "required positional argument: 'name'; write a function that needs none"
    )
    assert detail == ""


def test_factory_that_ends_the_program(project: Project) -> None:
    project.write(factory="import sys\ndef create(): sys.exit(4)\n")
    assert project.refuse("factory:create()")[0].startswith(
        'calling the factory "factory:create" raised SystemExit: 4'
    )


@pytest.mark.parametrize("parameters", ["", "config=None", "*, debug=False"])
def test_factory_that_is_named_without_its_brackets(project: Project, parameters: str) -> None:
    project.write(factory=f"def create({parameters}): pass\n")
    assert project.refuse("factory:create")[0] == (
        '"factory:create" is a function that does not take environ and start_response; if it is '
        'a factory, write "factory:create()"'
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "class app:\n    def __init__(self, environ): pass",
            "a class that does not take environ and start_response",
        ),
        (
            "class app:\n    def __new__(cls, environ): pass",
            "a class that does not take environ and start_response",
        ),
        (
            "class app:\n    def __call__(self, environ, start_response): pass",
            "a class whose instances are made without arguments",
        ),
        (
            "class app:\n    def __init__(self, scope, receive, send): pass",
            "a class that needs more than environ and start_response: send",
        ),
    ],
)
def test_class_that_takes_no_request(project: Project, source: str, said: str) -> None:
    """Checked as a function is: else every request would be answered 500."""
    project.write(classes=f"{source}\n")
    assert project.refuse("classes:app")[0] == (
        f'"classes:app" is {said}; if an instance of it is the application, name that'
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "class A:\n    def __call__(self, environ): pass\napp = A()",
            "an A object that does not take environ and start_response",
        ),
        (
            "class A:\n    def m(self, environ): pass\napp = A().m",
            "a method that does not take environ and start_response",
        ),
        (
            "def app(environ, start_response, *, db): pass",
            "a function that needs more than environ and start_response: db",
        ),
        (
            "def app(a, b, c, d=1): pass",
            "a function that needs more than environ and start_response: c",
        ),
    ],
)
def test_callable_that_takes_no_request(project: Project, source: str, said: str) -> None:
    project.write(callables=f"{source}\n")
    assert project.refuse("callables:app")[0].startswith(f'"callables:app" is {said}')


@pytest.mark.parametrize(
    "source",
    [
        "class app:\n    def __init__(self, environ, start_response, debug=False): pass",
        "class app:\n    def __init__(self, *arguments): pass",
        "class app:\n    def __new__(cls, environ, start_response): return []",
        "class M(type):\n    def __call__(cls, *a): return []\nclass app(metaclass=M): pass",
        "class app(list): pass",
        "class A:\n    def m(self, environ, start_response): pass\napp = A().m",
        "class A:\n    def __call__(self, environ, start_response, *more, x=1): pass\napp = A()",
        "import functools\napp = functools.partial(print, 1)",
    ],
)
def test_callable_that_may_take_a_request(project: Project, source: str) -> None:
    project.write(fine=f"{source}\n")
    assert project.load("fine:app") is not None


def test_factory_that_returns_what_takes_no_request(project: Project) -> None:
    project.write(factory="def create():\n    return lambda: None\n")
    assert project.refuse("factory:create()")[0] == (
        'what the factory "factory:create()" returned is a function that does not take environ '
        "and start_response"
    )


@pytest.mark.parametrize(
    "text",
    [
        "async def app(scope, receive, send): pass",
        "class A:\n    async def __call__(self, scope, receive, send): pass\napp = A()",
        "class A:\n    async def run(self, scope, receive, send): pass\napp = A().run",
    ],
)
def test_asynchronous_application_is_refused(project: Project, text: str) -> None:
    project.write(asynchronous=text)
    assert (
        "is an asynchronous (ASGI) application; serve-zig serves WSGI"
        in (project.refuse("asynchronous:app")[0])
    )


# Targets, and the formatting of tracebacks.


def test_parsed_target() -> None:
    target = parse_target("a.b:c.d()")
    assert (target.module, target.attribute, target.is_factory) == ("a.b", "c.d", True)
    assert target.text == "a.b:c.d()"
    with pytest.raises(TargetError, match="has no colon"):
        parse_target("a")


def test_groups_and_loops_of_exceptions_are_formatted() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    text = format_exception(ExceptionGroup("both", [first, second]))
    assert "first" in text
    assert "second" in text


def test_long_chains_of_exceptions_are_formatted() -> None:
    last: ValueError | None = None
    for number in range(sys.getrecursionlimit() // 10):
        error = ValueError(number)
        error.__cause__ = last
        last = error
    assert last is not None
    assert "ValueError: 0\n" in format_exception(last)


def test_controls_are_escaped_but_not_tab_and_newline() -> None:
    assert escape_controls("a\tb\nc é") == "a\tb\nc é"
    assert escape_controls("\x1b\x00\r\x9b\u2028\ud800") == r"\x1b\x00\r\x9b\u2028\ud800"


def test_frames_of_the_launcher_are_known_by_their_file() -> None:
    assert is_launcher_file(application.__file__)
    assert is_launcher_file("<frozen importlib._bootstrap>")
    assert not is_launcher_file(__file__)
    assert not is_launcher_file("/srv/serve_zig/app.py")


@pytest.mark.parametrize("method", ["worker_count", "wakeup_fd", "status"])
def test_server_that_was_not_made(method: str) -> None:
    """Its methods raise what is wrong, and leave no exception for others."""
    server = _core.Server.__new__(_core.Server)
    with pytest.raises(RuntimeError, match="the server was not initialised"):
        getattr(server, method)()
