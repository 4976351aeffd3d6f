"""`serve-zig init`: which application it finds, what it says, and the file that it writes."""

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import tomli

from serve_zig import discovery
from serve_zig.config import load
from serve_zig.init_command import text_of

REPOSITORY = Path(__file__).resolve().parent.parent

FLASK = "from flask import Flask\napp = Flask(__name__)\n"
BARE = """
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b""]
"""
DJANGO = """
    import os
    from django.core.wsgi import get_wsgi_application
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    application = get_wsgi_application()
"""
FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n"


class Folder:
    """A project's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> None:
        """Write a source file."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text), "utf-8")

    def found(self) -> list[str]:
        """Return the targets found, best first; ASGI ones and unusable ones are marked."""
        marks = [
            (one, "asgi " if one.is_asgi else "unusable " if one.unusable else "")
            for one in discovery.search(str(self.path)).candidates
        ]
        return [f"{mark}{one.target}" for one, mark in marks]

    def directory(self) -> str:
        """Return the directory of the best one, relative to the folder."""
        best = discovery.search(str(self.path)).candidates[0]
        return str(Path(best.directory).relative_to(self.path))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run serve-zig in the folder."""
        return subprocess.run(
            [sys.executable, "-m", "serve_zig", *arguments],
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def config(self, name: str = "serve.toml") -> dict[str, dict[str, object]]:
        """Return the file that was written."""
        return tomli.loads((self.path / name).read_text("utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return an empty folder."""
    return Folder(tmp_path)


# What is found.


@pytest.mark.parametrize(
    ("source", "targets"),
    [
        (FLASK, ["m:app"]),
        ("import flask\nserver = flask.Flask('x')\n", ["m:server"]),
        ("from flask import Flask as F\na = b = F(__name__)\n", ["m:a", "m:b"]),
        ("from flask.app import Flask\nx: Flask = Flask(__name__)\n", ["m:x"]),
        ("import bottle\napp = bottle.default_app()\n", ["m:app"]),
        ("import falcon\napi = falcon.App()\n", ["m:api"]),
        ("import falcon.asgi\napi = falcon.asgi.App()\n", ["asgi m:api"]),
        (
            "from pyramid.config import Configurator\nc = Configurator()\n"
            "app = c.make_wsgi_app()\n",
            ["m:app"],
        ),
        ("import dash\nd = dash.Dash()\nserver = d.server\n", ["m:server"]),
        (DJANGO, ["m:application"]),
        (BARE, ["m:app"]),
        ("def f(e, start_response): ...\n", ["m:f"]),
        ("def f(a, b): ...\ndef g(environ, start_response, more): ...\n", []),
        ("async def app(scope, receive, send): ...\n", ["asgi m:app"]),
        ("async def app(environ, start_response): ...\n", []),
        (
            "class A:\n    def __call__(self, environ, start_response): ...\napp = A()\nn = A\n",
            ["m:app"],
        ),
        (
            "class A:\n    def __init__(self, environ, start_response): ...\n"
            "    def __iter__(self): ...\n",
            ["m:A"],
        ),
        ("from flask import Flask\nclass Mine(Flask): ...\napp = Mine(__name__)\n", ["m:app"]),
        (FLASK + "from flask_sqlalchemy import SQLAlchemy\ndb = SQLAlchemy(app)\n", ["m:app"]),
        (FLASK + "from x import Proxy\napp = Proxy(app)\n", ["m:app"]),
        (
            FLASK + "from werkzeug.middleware.proxy_fix import ProxyFix\nfixed = ProxyFix(app)\n",
            ["m:app", "m:fixed"],
        ),
        ("app = unknown()\napp2 = [1]\n", []),
        ("app = app\nb = c\nc = b\n", []),
        ("def make_app(): return make_app()\napp = make_app()\n", []),
        ("if True:\n    from flask import Flask\n    app = Flask('x')\n", ["m:app"]),
        (
            "from flask import Flask\ntry:\n    app = Flask('x')\nexcept ImportError:\n"
            "    app = None\n",
            ["m:app"],
        ),
        ("from flask import Flask\nif __name__ == '__main__':\n    app = Flask('x')\n", []),
        (FASTAPI, ["asgi m:app"]),
        ("from quart import Quart\napp = Quart(__name__)\n", ["asgi m:app"]),
        ("from fastapi import FastAPI\nfrom a2wsgi import ASGIMiddleware\n"
         "a = FastAPI()\napp = ASGIMiddleware(a)\n", ["m:app", "asgi m:a"]),
    ],
)  # fmt: skip
def test_definitions(folder: Folder, source: str, targets: list[str]) -> None:
    folder.write("m.py", source)
    assert folder.found() == targets


@pytest.mark.parametrize(
    ("source", "targets"),
    [
        ("def create_app():\n    app = Flask('x')\n    return app\n", ["m:create_app()"]),
        ("def make_app(a=1, *b, c=2, **d):\n    return Flask('x')\n", ["m:make_app()"]),
        ("def create_app(config):\n    return Flask('x')\n", ["unusable m:create_app()"]),
        ("def create_app(*, config):\n    return Flask('x')\n", ["unusable m:create_app()"]),
        (
            "def create_app():\n    app = Flask('x')\n    app = Fix(app)\n    return app\n",
            ["m:create_app()"],
        ),
        ("def create_app():\n    def app(environ, start_response): ...\n    return 3\n", []),
        ("def helper():\n    return Flask('x')\n", []),
        (
            "def create_app():\n    return Flask('x')\napp = create_app()\n",
            ["m:app", "m:create_app()"],
        ),
        ("async def create_app():\n    return Flask('x')\n", []),
    ],
)
def test_factories(folder: Folder, source: str, targets: list[str]) -> None:
    folder.write("m.py", "from flask import Flask\n" + source)
    assert folder.found() == targets


def test_definition_in_another_file_is_followed(folder: Folder) -> None:
    folder.write("shop/__init__.py", "from .web import create_app\n")
    folder.write(
        "shop/web.py", "from flask import Flask\ndef create_app():\n    return Flask('x')\n"
    )
    folder.write("wsgi.py", "from shop.web import create_app\napplication = create_app()\n")
    assert folder.found() == ["wsgi:application", "shop.web:create_app()"]
    folder.write("wsgi.py", "from shop.web import create_app as c\napplication = c()\n")
    assert folder.found()[0] == "wsgi:application"
    folder.write("shop/web.py", FLASK)
    folder.write("wsgi.py", "from shop.web import app\nif __name__ == '__main__':\n    app.run()\n")
    assert folder.found() == ["wsgi:app", "shop.web:app"]


def test_likeliest_comes_first(folder: Folder) -> None:
    folder.write("tests/app.py", FLASK)
    folder.write("test_app.py", FLASK)
    folder.write("examples/wsgi.py", FLASK)
    folder.write("deep/down/below/app.py", FLASK)
    folder.write("things.py", BARE)
    folder.write("app.py", FLASK)
    folder.write("shop/settings.py", "")
    folder.write("shop/wsgi.py", DJANGO)
    targets = folder.found()
    assert targets[:4] == ["shop.wsgi:application", "app:app", "app:app", "things:app"]
    assert sorted(targets[4:]) == ["app:app", "test_app:app", "wsgi:app"]


def test_what_is_installed_or_hidden_is_passed_over(folder: Folder) -> None:
    for name in ("venv/lib/app.py", ".tox/app.py", "node_modules/app.py", "__pycache__/app.py"):
        folder.write(name, FLASK)
    folder.write("venv/pyvenv.cfg", "")
    folder.write("not-a-module.py", FLASK)
    folder.write("class.py", FLASK)
    assert folder.found() == []


@pytest.mark.parametrize(
    ("files", "target", "directory"),
    [
        ({"app.py": FLASK}, "app:app", "."),
        ({"src/app.py": FLASK}, "app:app", "src"),
        ({"shop/__init__.py": FLASK}, "shop:app", "."),
        ({"src/shop/__init__.py": "", "src/shop/web.py": FLASK}, "shop.web:app", "src"),
        ({"a/web.py": "import a.models\n" + FLASK, "a/models.py": ""}, "a.web:app", "."),
        ({"a/web.py": "import models\n" + FLASK, "a/models.py": ""}, "web:app", "a"),
        (
            # A stray __init__.py beside modules that import each other by their bare names.
            {"__init__.py": "", "app.py": "import models\n" + FLASK, "models.py": ""},
            "app:app",
            ".",
        ),
        ({"a/shop/settings.py": "", "a/shop/wsgi.py": DJANGO}, "shop.wsgi:application", "a"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_directory_is_where_imports_are_found(
    folder: Folder, files: dict[str, str], target: str, directory: str
) -> None:
    for name, text in files.items():
        folder.write(name, dedent(text))
    assert folder.found()[0] == target
    assert folder.directory() == directory


def test_package_that_imports_relatively_needs_its_parent(folder: Folder) -> None:
    folder.write("shop/__init__.py", "")
    folder.write("shop/web.py", "from . import models\n" + FLASK)
    (best,) = discovery.search(str(folder.path / "shop")).candidates
    assert best.target == "shop.web:app"
    assert best.directory == str(folder.path)


def test_sources_that_cannot_be_read_are_named(folder: Folder) -> None:
    folder.write("broken.py", "def (:\n")
    (folder.path / "zeros.py").write_bytes(b"a = 1\0\n")
    (folder.path / "encoding.py").write_bytes(b"# coding: nonsense\n")
    folder.write("deep.py", "a = " + "(" * 300 + ")" * 300 + "\n")
    folder.write("app.py", FLASK)
    result = discovery.search(str(folder.path))
    assert [one.target for one in result.candidates] == ["app:app"]
    assert sorted(place.partition(":")[0] for place in result.unreadable) == [
        "broken.py",
        "deep.py",
        "encoding.py",
        "zeros.py",
    ]


def test_nothing_is_imported(folder: Folder) -> None:
    folder.write("app.py", FLASK + "raise SystemExit('imported')\n")
    done = folder.run("init")
    assert done.returncode == 0, done.stderr


# What it says and writes.


def test_file_written_passes_the_check(folder: Folder) -> None:
    folder.write("app.py", FLASK)
    folder.write("other.py", "from flask import Flask\nsecond = Flask(__name__)\n")
    folder.write("api.py", FASTAPI)
    done = folder.run("init")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:4] == [
        "Found app.py:2: a Flask application, app:app",
        "Left aside; --target names another:",
        "  api.py:2: a FastAPI application, api:app (ASGI: not served)",
        "  other.py:2: a Flask application, other:second",
    ]
    assert "Wrote serve.toml." in done.stdout
    assert folder.config()["app"] == {"target": "app:app", "directory": "."}
    checked = folder.run("--check")
    assert checked.returncode == 0, checked.stderr


def test_django_project(folder: Folder) -> None:
    folder.write("manage.py", "")
    folder.write("shop/settings.py", "SECRET_KEY = 'x'\nROOT_URLCONF = 'shop.urls'\n")
    folder.write("shop/urls.py", "urlpatterns = []\n")
    folder.write("shop/wsgi.py", DJANGO)
    folder.write(
        "shop/asgi.py",
        "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()\n",
    )
    done = folder.run("init", "-c", "django.toml")
    assert done.returncode == 0, done.stderr
    assert "Found shop/wsgi.py:5: a Django application, shop.wsgi:application" in done.stdout
    checked = folder.run("-c", "django.toml", "--check")
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("example", ["flask_app", "django_project", "falcon_app", "bottle_app"])
def test_examples_are_found(example: str) -> None:
    found = discovery.search(str(REPOSITORY / "examples" / example))
    config = tomli.loads((REPOSITORY / "examples" / example / "serve.toml").read_text("utf-8"))
    assert found.candidates[0].target == config["app"]["target"]


def test_text_shows_the_defaults_of_the_schema(tmp_path: Path) -> None:
    chosen = discovery.Candidate.given("a.b:c", str(tmp_path / "src"))
    (tmp_path / "src").mkdir()
    text = text_of(chosen, str(tmp_path))
    assert all(len(line) <= 110 for line in text.splitlines())
    file = tmp_path / "serve.toml"
    file.write_text(text, "utf-8")
    config = load(str(file), (), {})
    assert config.text("app.directory") == str(tmp_path / "src")
    # What is commented out may be put in as it stands.
    lines = [re.sub(r"^# (?=\w+ = )", "", line) for line in text.splitlines()]
    assert lines != text.splitlines()
    file.write_text("\n".join(lines), "utf-8")
    load(str(file), (), {})


def test_existing_file_is_left_alone_without_force(folder: Folder) -> None:
    folder.write("app.py", FLASK)
    folder.write("serve.toml", "mine\n")
    done = folder.run("init")
    assert done.returncode == 2
    assert done.stderr == (
        "serve-zig: error: serve.toml: exists already and is left as it is; --force writes it "
        "anew, -c names another\n"
    )
    assert (folder.path / "serve.toml").read_text("utf-8") == "mine\n"
    assert folder.run("init", "--force").returncode == 0
    assert folder.config()["app"]["target"] == "app:app"


def test_equally_likely_ones_are_listed(folder: Folder) -> None:
    folder.write("two/wsgi.py", FLASK.replace("app", "application"))
    folder.write("one/wsgi.py", FLASK.replace("app", "application"))
    done = folder.run("init")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "serve-zig: error: 2 applications look equally likely; name one with --target, or search "
        "one folder alone: -c FOLDER/serve.toml",
        "serve-zig: error:   one/wsgi.py:2: a Flask application, wsgi:application",
        "serve-zig: error:   two/wsgi.py:2: a Flask application, wsgi:application",
    ]
    assert not (folder.path / "serve.toml").exists()
    done = folder.run("init", "--target", "wsgi:application")
    assert done.returncode == 2
    assert "is found in one/wsgi.py and in two/wsgi.py;" in done.stderr
    assert folder.run("init", "-c", "two/serve.toml").returncode == 0
    assert folder.run("-c", "two/serve.toml", "--check").returncode == 0


def test_target_given_by_hand(folder: Folder) -> None:
    folder.write("app.py", FLASK)
    folder.write("src/shop/__init__.py", "app = __import__('flask').Flask('x')\n")
    done = folder.run("init", "--target", "shop:app")
    assert done.returncode == 0, done.stderr
    assert folder.config()["app"] == {"target": "shop:app", "directory": "src"}
    assert folder.run("--check").returncode == 0
    done = folder.run("init", "--force", "--target", "app:app")
    assert folder.config()["app"] == {"target": "app:app", "directory": "."}
    done = folder.run("init", "--force", "--target", "app.py")
    assert done.returncode == 2
    assert done.stderr.startswith("serve-zig: error: --target: found a file name")


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({}, "no WSGI application is found in "),
        ({"main.py": FASTAPI}, "main.py:2: main:app is a FastAPI application, which speaks ASGI;"),
        (
            {"m.py": "from flask import Flask\ndef create_app(config):\n    return Flask('x')\n"},
            "m.py:2: m:create_app() makes a Flask application, but it needs arguments: config;",
        ),
        ({"manage.py": ""}, "manage.py: a Django project without a wsgi.py;"),
        ({"app.py": "def (:\n"}, "app.py:1: invalid syntax; mend the file"),
    ],
)
def test_nothing_to_serve(folder: Folder, files: dict[str, str], what: str) -> None:
    for name, text in files.items():
        folder.write(name, text)
    done = folder.run("init")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"serve-zig: error: {what}")
    assert not (folder.path / "serve.toml").exists()


def test_asgi_application_is_refused_by_name(folder: Folder) -> None:
    folder.write("main.py", FASTAPI)
    folder.write("app.py", FLASK)
    done = folder.run("init", "--target", "main:app")
    assert done.returncode == 2
    assert "which speaks ASGI; serve-zig serves WSGI applications." in done.stderr
