"""`serve-zig migrate`: gunicorn's and uWSGI's settings as a serve.toml that loads."""

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import requests
import tomli
from gunicorn.config import KNOWN_SETTINGS, Config, Setting

from serve_zig import config, gunicorn_file, gunicorn_settings, uwsgi_file, uwsgi_settings
from serve_zig.errors import ConfigError
from serve_zig.gunicorn_file import Function
from serve_zig.gunicorn_settings import EXPLAINED, OPTIONS
from serve_zig.migration import Document, Template, Unknown, address
from serve_zig.schema import KEYS_BY_PATH, TABLES
from serving import Servers

REPOSITORY = Path(__file__).resolve().parent.parent

# What each variable of the tests' configs holds.
ENVIRONMENT = {"PORT": "8001", "HOST": "127.0.0.1", "N": "3", "LEVEL": "error", "NAME": "hello"}

HELLO = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["SERVER_PORT"].encode()]
"""


class Folder:
    """A folder with another server's configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> str:
        """Write a file and return its path."""
        (self.path / name).write_text(dedent(text), "utf-8")
        return str(self.path / name)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run serve-zig migrate in the folder."""
        return subprocess.run(
            [sys.executable, "-m", "serve_zig", "migrate", *arguments],
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def load(self, text: str) -> config.Config:
        """Load what was printed, as serve-zig --check does."""
        assert all(len(line) <= 140 for line in text.splitlines()), text
        (self.path / "serve.toml").write_text(text, "utf-8")
        return config.load(str(self.path / "serve.toml"), (), ENVIRONMENT)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return an empty folder."""
    return Folder(tmp_path)


def gunicorn(**settings: object) -> str:
    """Return the config for gunicorn's settings."""
    document = gunicorn_settings.migrate({"wsgi_app": "hello:app", **settings}, "a test")
    return document.to_toml()


def uwsgi(text: str, folder: Folder) -> str:
    """Return the config for the options of an ini file."""
    file = folder.write("uwsgi.ini", "[uwsgi]\nmodule = hello:app\n" + dedent(text))
    return uwsgi_settings.migrate(uwsgi_file.read_ini(file), "a test").to_toml()


def written(text: str, path: str) -> object:
    """Return what a config says about a key; None if nothing."""
    table, name = path.split(".")
    return tomli.loads(text).get(table, {}).get(name)


def notes(text: str) -> str:
    """Return what has no counterpart, without line breaks."""
    rest = text.partition("# Without a counterpart:")[2]
    return " ".join(line.removeprefix("#").strip() for line in rest.splitlines())


# gunicorn: every setting.


def test_every_setting_of_gunicorn_is_known() -> None:
    assert set(OPTIONS) == {setting.name for setting in KNOWN_SETTINGS}


def test_every_setting_has_a_rule_or_an_explanation() -> None:
    rules = gunicorn_settings.rules()
    assert rules | set(EXPLAINED) == set(OPTIONS)
    assert rules & set(EXPLAINED) == set()
    assert all(text and not text.endswith(".") for text in EXPLAINED.values())


@pytest.mark.parametrize("setting", KNOWN_SETTINGS, ids=lambda setting: str(setting.name))
def test_flags_are_those_of_gunicorn(setting: type[Setting]) -> None:
    form, flags = OPTIONS[str(setting.name)]
    assert flags == tuple(setting.cli or ())
    forms = {
        "append": "list",
        "store_true": "true",
        "store_const": "false",
        None: "optional" if setting.nargs == "?" else "value",
    }
    if flags:
        assert form == forms[setting.action]


# A value for each setting, other than the default.
SAMPLES: dict[str, object] = {
    "bind": ["0.0.0.0:80", "unix:/run/a.sock"],
    "worker_class": "gthread",
    "umask": 0o007,
    "chdir": ".",
    "raw_env": ["A=1"],
    "secure_scheme_headers": {"X-SSL": "1"},
    "forwarded_allow_ips": "10.0.0.0/8",
    "proxy_allow_ips": "10.0.0.1",
    "proxy_protocol": "v2",
    "loglevel": "warning",
    "wsgi_app": "hello",
    "protocol": "uwsgi",
    "accesslog": "-",
    "logconfig_dict": {"version": 1},
    "post_request": Function("post_request"),
}


def sample(setting: type[Setting]) -> object:
    """Return a value that the setting may have."""
    if setting.name in SAMPLES:
        return SAMPLES[setting.name]
    if setting.type not in (None, callable):
        return 7
    if setting.action in ("store_true", "store_const"):
        return setting.name != "sendfile"
    return Function(str(setting.name)) if setting.type is callable else "some-value"


@pytest.mark.parametrize("setting", KNOWN_SETTINGS, ids=lambda setting: str(setting.name))
def test_every_setting_becomes_a_config_that_loads(setting: type[Setting], folder: Folder) -> None:
    value = sample(setting)
    base = gunicorn()
    # Some count only beside others.
    extra: dict[str, Any] = {"bind": "unix:/run/a.sock"} if setting.name == "umask" else {}
    text = gunicorn(**{**extra, str(setting.name): value})
    folder.load(text)
    # Nothing is dropped in silence.
    assert text != base
    if setting.name in EXPLAINED:
        assert str(setting.name) in notes(text)


def test_settings_that_are_none_are_defaults() -> None:
    assert gunicorn(**{name: None for name in OPTIONS if name != "wsgi_app"}) == gunicorn()


@pytest.mark.parametrize(
    ("settings", "path", "value"),
    [
        ({}, "listen.bind", ["127.0.0.1:8000"]),
        ({}, "concurrency.threads", 1),
        ({}, "proxy.trusted", ["127.0.0.1", "::1"]),
        ({"wsgi_app": "shop.wsgi"}, "app.target", "shop.wsgi:application"),
        ({"wsgi_app": "shop:create_app()"}, "app.target", "shop:create_app()"),
        ({"wsgi_app": Template("${NAME}:app")}, "app.target", "${NAME}:app"),
        ({"bind": "0.0.0.0"}, "listen.bind", ["0.0.0.0:8000"]),
        ({"bind": ":80"}, "listen.bind", [":80"]),
        ({"bind": ["[::1]:80", "unix:///run/a.sock", "fd://3"]}, "listen.bind",
         ["[::1]:80", "unix:/run/a.sock", "fd://3"]),
        ({"bind": [":80", ":80"]}, "listen.bind", [":80"]),
        ({"bind": Template("${HOST}:${PORT:-80}")}, "listen.bind", ["${HOST}:${PORT:-80}"]),
        ({"bind": Template("${HOST}")}, "listen.bind", ["${HOST}:8000"]),
        ({"workers": 4, "threads": 8}, "concurrency.threads", 32),
        ({"workers": "4"}, "concurrency.threads", 4),
        ({"workers": 0, "threads": 0}, "concurrency.threads", 1),
        ({"threads": Template("${N:-4}")}, "concurrency.threads", "${N:-4}"),
        ({"workers": Unknown("x"), "threads": 8}, "concurrency.threads", None),
        ({"worker_class": "gevent", "workers": 2}, "concurrency.threads", 512),
        ({"worker_class": "gevent", "worker_connections": 50}, "concurrency.threads", 50),
        ({"worker_connections": 100, "workers": 3}, "limits.connections", 300),
        ({"backlog": 64}, "listen.backlog", 64),
        ({"timeout": 60}, "timeouts.request", 60.0),
        ({"timeout": 60}, "timeouts.request_action", "answer"),
        ({"timeout": 60, "worker_class": "gthread"}, "timeouts.request_action", None),
        ({"timeout": 0}, "timeouts.request", 0.0),
        ({"timeout": Template("${N:-5}")}, "timeouts.request", "${N:-5}"),
        ({"graceful_timeout": 20}, "timeouts.drain", 20.0),
        ({"graceful_timeout": 0}, "timeouts.drain", 0.001),
        ({"keepalive": 5}, "timeouts.keep_alive", 5.0),
        ({"keepalive": 0}, "limits.requests_per_connection", 1),
        ({"max_requests": 100}, "limits.requests", 100),
        ({"max_requests": 100, "workers": 4}, "limits.requests", 400),
        (
            {"max_requests": 100, "max_requests_jitter": 10, "workers": 4},
            "limits.requests_jitter",
            40,
        ),
        ({"limit_request_line": 4094}, "limits.request_line", "4094 B"),
        ({"limit_request_line": 9000}, "limits.request_line", "8190 B"),
        ({"limit_request_line": 0}, "limits.request_line", "1 MiB"),
        ({"limit_request_line": 0}, "limits.head", "1 MiB"),
        ({"limit_request_fields": 50}, "limits.fields", 50),
        ({"limit_request_fields": 0}, "limits.fields", 10_000),
        ({"limit_request_field_size": 70_000}, "limits.head", "69 KiB"),
        ({"limit_request_field_size": 8190}, "limits.head", None),
        ({"umask": 0o117, "bind": "unix:/run/a.sock"}, "listen.unix_mode", 0o660),
        ({"forwarded_allow_ips": "*"}, "proxy.trusted", ["0.0.0.0/0", "::/0", "unix"]),
        ({"forwarded_allow_ips": "10.0.0.1, 10.1.0.0/16", "proxy_allow_ips": "10.0.0.2"},
         "proxy.trusted", ["10.0.0.1", "10.1.0.0/16", "10.0.0.2"]),
        ({"forwarded_allow_ips": "10.0.0.1", "bind": "unix:/run/a.sock"},
         "proxy.trusted", ["10.0.0.1", "unix"]),
        ({"proxy_protocol": True}, "proxy.protocol", True),
        ({"proxy_protocol": "off"}, "proxy.protocol", None),
        ({"accesslog": "-"}, "log.access", "stdout"),
        ({"accesslog": "/var/log/a.log"}, "log.access", "/var/log/a.log"),
        ({"loglevel": "DEBUG"}, "log.level", "info"),
        ({"loglevel": "critical"}, "log.level", "error"),
        ({"loglevel": Template("${LEVEL}")}, "log.level", "${LEVEL}"),
        ({"chdir": "src$"}, "app.directory", "src$$"),
    ],
    ids=str,
)  # fmt: skip
def test_values_of_gunicorn(
    settings: dict[str, Any], path: str, value: object, folder: Folder
) -> None:
    (folder.path / "src$").mkdir()
    text = gunicorn(**settings)
    assert written(text, path) == value
    folder.load(text)


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"wsgi_app": "shop:create_app('x')"}, "a factory is called without arguments"),
        ({"worker_class": "uvicorn.workers.UvicornWorker"}, "the application speaks ASGI"),
        ({"keepalive": 10**9}, "timeouts.keep_alive = 1000000000.0: serve-zig takes no such value"),
        ({"backlog": "many"}, "listen.backlog = many: not evaluated"),
        ({"loglevel": "chatty"}, "loglevel = 'chatty': no such level"),
        ({"forwarded_allow_ips": Template("${IPS}")}, "write proxy.trusted as a list"),
        ({"bind": [Unknown("f()")]}, "bind = f(): not evaluated"),
        ({"timeout": Unknown("f()")}, "timeout = f(): not evaluated, since it depends on more"),
        ({"raw_env": ["SECRET=hunter2", "B=1"]}, "raw_env (SECRET, B): set these in the environ"),
        ({"worker_connections": Unknown("f()")}, "worker_connections = f(): not evaluated"),
        ({"worker_connections": 5, "workers": Unknown("f()")}, "limits.connections is left at"),
        ({"umask": 2}, "umask = 2: set it in the shell"),
    ],
    ids=str,
)  # fmt: skip
def test_what_has_no_counterpart_is_told(
    settings: dict[str, Any], note: str, folder: Folder
) -> None:
    text = gunicorn(**{"wsgi_app": "hello:app", **settings})
    assert note in notes(text), text
    assert "hunter2" not in text
    if written(text, "app.target") is not None:
        folder.load(text)


def test_a_long_or_odd_value_is_cut_and_escaped(folder: Folder) -> None:
    text = gunicorn(proc_name="x" * 1000, pidfile="a\nb = 1\x1b[0m")
    assert "x" * 100 not in text
    assert r"pidfile = 'a\nb = 1\x1b[0m'" in text
    folder.load(text)


# gunicorn.conf.py, evaluated.


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("x = 1", 1),
        ("x = 2 * 3 + 1 - 4 // 2", 5),
        ("x = 2 ** 4", 16),
        ("x = -1", -1),
        ("x = 'a' 'b' + 'c'", "abc"),
        ("x = ('a', 'b')", ["a", "b"]),
        ("x = {'a': 1}", {"a": 1}),
        ("y = 4\nx = y + 1", 5),
        ("x: int = 3", 3),
        ("x = 1\nx += 2", 3),
        ("x, y = 1, 2", 1),
        ("x = ['a']\nx.append('b')\nx.extend(['c'])", ["a", "b", "c"]),
        ("x = {}\nx['a'] = 1\nx.update({'b': 2})", {"a": 1, "b": 2}),
        ("y = 'z'\nx = f'a{y}'", "az"),
        ("x = 'a%s' % 'b'", "ab"),
        ("x = 'a%d %s' % (1, 'b')", "a1 b"),
        ("x = 'a{}'.format('b')", "ab"),
        ("x = 'A b'.lower().split(' ')", ["a", "b"]),
        ("x = max(1, min(2, 3))", 2),
        ("x = int('3')", 3),
        ("x = 1 if True else 2", 1),
        ("x = None or 3", 3),
        ("if 1 > 2:\n    x = 1\nelse:\n    x = 2", 2),
        ("try:\n    x = 1\nexcept Exception:\n    x = 2", 1),
        ("import ssl\nx = ssl.CERT_REQUIRED", 2),
        ("def x(server): ...", Function("x")),
        ("import os\nx = os.environ.get('A')", Template("${A}")),
        ("import os\nx = os.environ['A']", Template("${A}")),
        ("import os\nx = os.getenv('A', 'b')", Template("${A:-b}")),
        ("import os\nx = int(os.getenv('A', 3))", Template("${A:-3}")),
        ("import os\nx = os.environ.get('A') or 'b'", Template("${A:-b}")),
        ("import os as o\nx = o.environ.get('A', 'b')", Template("${A:-b}")),
        (
            "from os import environ, getenv\nx = environ.get('A') + getenv('B')",
            Template("${A}${B}"),
        ),
        ("import os\nx = 'a$' + os.environ['A']", Template("a$$${A}")),
        ("import os\nx = f\"h:{os.environ.get('A', 80)}\"", Template("h:${A:-80}")),
        ("import os\nx = 'h:%s' % os.environ['A']", Template("h:${A}")),
        ("import os\nx = 'h:{}'.format(os.environ['A'])", Template("h:${A}")),
    ],
)
def test_evaluation(source: str, value: object, folder: Folder) -> None:
    found = gunicorn_file.evaluate(folder.write("gunicorn.conf.py", source))["x"]
    if isinstance(value, Function):
        assert repr(found) == repr(value)
    else:
        assert found == value


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("import multiprocessing\nx = multiprocessing.cpu_count() * 2 + 1",
         "multiprocessing.cpu_count() * 2 + 1"),
        ("x = undefined", "undefined"),
        ("x = 1 / 0", "1 / 0"),
        ("x = 'a' * 10 ** 9", "'a' * 10 ** 9"),
        ("x = 9 ** 9 ** 9", "9 ** 9 ** 9"),
        ("x = '%999999999d' % 1", "'%999999999d' % 1"),
        ("x = int('a')", "int('a')"),
        ("x = [1][5]", "[1][5]"),
        ("x = open('/etc/passwd').read()", "open('/etc/passwd').read()"),
        ("x = __import__('os').getpid()", "__import__('os').getpid()"),
        ("def f(): return 1\nx = f()", "f()"),
        ("import os\nx = int(os.environ['A']) * 2", "int(os.environ['A']) * 2"),
        ("import os\nx = os.environ.get('A', '}')", "os.environ.get('A', '}')"),
        ("import os\nx = 1\nif os.environ.get('A'):\n    x = 2",
         "set if os.environ.get('A'), line 3"),
        ("for i in range(3):\n    x = i", "set in line 1"),
        ("x = [1]\nx.sort(1)", "changed in line 2"),
        ("x = {}\nx[undefined] = 1", "changed in line 2"),
        ("class x: ...", "the class x"),
    ],
)  # fmt: skip
def test_what_is_not_evaluated(source: str, shown: str, folder: Folder) -> None:
    found = gunicorn_file.evaluate(folder.write("gunicorn.conf.py", source))["x"]
    assert isinstance(found, Unknown)
    assert found.source == shown


def test_file_that_is_no_python_is_refused(folder: Folder) -> None:
    file = folder.write("gunicorn.conf.py", "bind = (\n")
    with pytest.raises(ConfigError, match=r"gunicorn.conf.py:1: not valid Python"):
        gunicorn_file.evaluate(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        gunicorn_file.evaluate(str(folder.path / "gone.py"))


def test_evaluation_runs_nothing(folder: Folder) -> None:
    folder.write("gunicorn.conf.py", "open('made', 'w')\nbind = ':80'\n")
    done = folder.run("gunicorn.conf.py")
    assert done.returncode == 0, done.stderr
    assert not (folder.path / "made").exists()


def test_execution_runs_the_file(folder: Folder) -> None:
    folder.write(
        "gunicorn.conf.py",
        """
        import multiprocessing
        print("noise")
        workers = 1 + len([1 for _ in range(3)])
        Bind = ":80"
        logger_class = type("L", (), {})
        raw_env = {object()}
        def when_ready(server): ...
        """,
    )
    assert "not known here" in folder.run("gunicorn.conf.py").stdout
    done = folder.run("gunicorn.conf.py", "--execute", "--target", "hello:app")
    assert done.returncode == 0, done.stderr
    assert written(done.stdout, "concurrency.threads") == 4
    assert written(done.stdout, "listen.bind") == [":80"]
    assert "noise" in done.stderr
    assert "noise" not in done.stdout
    assert "the function when_ready" in done.stdout
    folder.load(done.stdout)


def test_execution_that_fails_is_told(folder: Folder) -> None:
    folder.write("gunicorn.conf.py", "raise ValueError('mine')\n")
    done = folder.run("--execute", "gunicorn.conf.py")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "ValueError: mine" in done.stderr
    assert "gunicorn.conf.py: could not be executed (exit status 1)" in done.stderr


# gunicorn's command line.


@pytest.mark.parametrize(
    "line",
    [
        "app:app",
        "-w 4 -b :8000 app:app",
        "app:app --workers=4 --bind 0.0.0.0:80 --bind unix:/run/a.sock",
        "-k gthread --threads 8 --no-sendfile --preload -e A=1 -e B=2 app:app",
        "--proxy-protocol --limit-request-field_size 9000 -t 30 app:app",
        "--proxy-protocol v2 --no-control-socket --max-requests 5 app:app",
        "-D -p /run/a.pid --worker-conn 50 app:app",
    ],
)
def test_command_line_is_read_as_gunicorn_reads_it(line: str) -> None:
    theirs = vars(Config().parser().parse_args(line.split()))
    rest = theirs.pop("args")
    ours, our_rest = gunicorn_settings.parse_command_line(line.split())
    assert our_rest == rest
    expected = {name: value for name, value in theirs.items() if value is not None}
    assert {name: str(value) for name, value in ours.items()} == {
        name: str(value) for name, value in expected.items()
    }


@pytest.mark.parametrize(
    "command",
    [
        "gunicorn -w 4 --threads 2 -b 127.0.0.1:$PORT hello:app",
        "-- gunicorn -w 4 --threads 2 -b 127.0.0.1:${PORT} hello:app",
        "-- PORT=1 exec /usr/bin/python3 -m gunicorn -w 4 --threads 2 -b 127.0.0.1:$PORT hello:app",
    ],
)
def test_command_of_gunicorn(command: str, folder: Folder) -> None:
    done = folder.run(*command.split())
    assert done.returncode == 0, done.stderr
    loaded = folder.load(done.stdout)
    assert loaded.integer("concurrency.threads") == 8
    assert loaded.strings("listen.bind") == ["127.0.0.1:8001"]
    assert loaded.text("app.target") == "hello:app"


def test_command_line_counts_more_than_the_file(folder: Folder) -> None:
    folder.write("gunicorn.conf.py", "workers = 2\nbacklog = 5\nwsgi_app = 'other'\n")
    folder.write("more.py", "workers = 3\n")
    text = folder.run("gunicorn", "-w", "7", "hello:app").stdout
    assert written(text, "concurrency.threads") == 7
    assert written(text, "listen.backlog") == 5
    assert written(text, "app.target") == "hello:app"
    text = folder.run("gunicorn", "-c", "more.py").stdout
    assert written(text, "concurrency.threads") == 3
    assert written(text, "listen.backlog") is None


def test_secrets_of_a_command_line_are_not_repeated(folder: Folder) -> None:
    done = folder.run("gunicorn", "-e", "KEY=hunter2", "hello:app")
    assert "KEY" in done.stdout
    assert "hunter2" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "name a gunicorn.conf.py, a uwsgi.ini, or a command"),
        (["waitress-serve", "app:app"], "no command of gunicorn or uwsgi"),
        (["gone.conf.py"], "gone.conf.py: cannot be read (No such file or directory)"),
        (["gone.ini"], "gone.ini: cannot be read"),
        (["gunicorn", "--nonsense", "app:app"], "unrecognized arguments: --nonsense"),
        (["--target", "x", "gunicorn.conf.py"], "--target: found"),
        (["a.py", "b.py"], "one file at a time"),
    ],
)
def test_mistakes(arguments: list[str], what: str, folder: Folder) -> None:
    done = folder.run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert what in done.stderr
    assert "Traceback" not in done.stderr


def test_application_is_found_where_no_setting_names_it(folder: Folder) -> None:
    folder.write("gunicorn.conf.py", "bind = ':80'\n")
    text = folder.run("gunicorn.conf.py").stdout
    assert written(text, "app.target") == "module:application"
    folder.write("hello.py", HELLO)
    text = folder.run("gunicorn.conf.py").stdout
    assert written(text, "app.target") == "hello:app"
    assert "found in hello.py, line 2" in text


def test_config_that_was_printed_serves(serve: Servers, folder: Folder) -> None:
    folder.write("gunicorn.conf.py", "workers = 2\nthreads = 2\nkeepalive = 3\ntimeout = 30\n")
    folder.write("hello.py", HELLO)
    done = folder.run("gunicorn.conf.py")
    assert done.returncode == 0, done.stderr
    folder.write("serve.toml", done.stdout)
    server = serve(config_file=folder.path / "serve.toml")
    assert requests.get(server.url, timeout=10).text == str(server.port)


# uWSGI.

# What configs in the field hold.
COMMON = """
module wsgi wsgi-file callable chdir pythonpath pp home virtualenv venv http http-socket socket
uwsgi-socket https processes workers threads enable-threads master vacuum die-on-term need-app
single-interpreter lazy-apps lazy harakiri harakiri-verbose max-requests max-worker-lifetime
reload-on-rss evil-reload-on-rss worker-reload-mercy reload-mercy buffer-size post-buffering
limit-post listen chmod-socket chown-socket uid gid env static-map static-index static-expires
check-static offload-threads stats stats-http logto logger req-logger disable-logging log-format
log-date log-slow log-4xx log-5xx log-x-forwarded-for log-maxsize log-master touch-reload
py-autoreload cheaper cheaper-initial cheaper-step thunder-lock http-timeout socket-timeout
http-keepalive http-auto-chunked http-chunked-input so-keepalive tcp-nodelay ignore-sigpipe
ignore-write-errors disable-write-exception add-header route-uri manage-script-name mount plugin
plugins gevent async ugreen emperor spooler mule cron attach-daemon import shared-import cache2
daemonize pidfile safe-pidfile auto-procname procname-prefix strict no-orphans memory-report
cpu-affinity py-tracebacker enable-proxy-protocol reuse-port hook-post-app exec-asap show-config
optimize wsgi-disable-file-wrapper
"""


def test_a_hundred_options_of_uwsgi_are_known() -> None:
    known = uwsgi_settings.rules() | set(uwsgi_settings.EXPLAINED) | set(uwsgi_settings.ALIASES)
    assert len(known) > 100
    assert uwsgi_settings.rules() & set(uwsgi_settings.EXPLAINED) == set()
    for name in COMMON.split():
        resolved = uwsgi_settings.ALIASES.get(name, name)
        assert resolved in uwsgi_settings.rules() or uwsgi_settings.explanation(resolved), name


@pytest.mark.parametrize("name", sorted(set(uwsgi_settings.EXPLAINED)))
def test_options_without_a_counterpart_are_told(name: str, folder: Folder) -> None:
    text = uwsgi(f"{name} = some-value\n", folder)
    assert f"{name} = some-value: {uwsgi_settings.EXPLAINED[name][:20]}"[:60] in notes(text)
    folder.load(text)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("", "app.target", "hello:app"),
        ("module = shop.wsgi", "app.target", "shop.wsgi:application"),
        ("module = shop\ncallable = app", "app.target", "shop:app"),
        ("wsgi = shop:app", "app.target", "shop:app"),
        ("chdir = src", "app.directory", "src"),
        ("http = :8080", "listen.bind", [":8080"]),
        ("http = :$(PORT)", "listen.bind", [":${PORT}"]),
        ("http-socket = 127.0.0.1:80\nsocket = /run/a.sock", "listen.bind",
         ["127.0.0.1:80", "unix:/run/a.sock"]),
        ("chmod-socket = 660", "listen.unix_mode", 0o660),
        ("chmod-socket", "listen.unix_mode", 0o666),
        ("listen = 100", "listen.backlog", 100),
        ("processes = 4\nthreads = 2", "concurrency.threads", 8),
        ("workers = 4", "concurrency.threads", 4),
        ("gevent = 100\nprocesses = 2", "concurrency.threads", 200),
        ("gevent = 1000", "concurrency.threads", 512),
        ("processes = $(N)", "concurrency.threads", None),
        ("harakiri = 30", "timeouts.request", 30.0),
        ("harakiri = 30", "timeouts.request_action", "answer"),
        ("reload-mercy = 8", "timeouts.drain", 8.0),
        ("http-timeout = 90", "timeouts.body", 90.0),
        ("socket_timeout = 90", "timeouts.write", 90.0),
        ("http-keepalive = 20", "timeouts.keep_alive", 20.0),
        ("http-keepalive = 1", "timeouts.keep_alive", 1.0),
        ("buffer-size = 131072", "limits.head", "128 KiB"),
        ("buffer-size = 32768", "limits.head", None),
        ("post-buffering = 8192", "limits.body_memory", "8 KiB"),
        ("limit-post = 1048576", "limits.body", "1 MiB"),
        ("max-requests = 100\nprocesses = 3", "limits.requests", 300),
        ("log-slow = 500", "log.slow_request", 0.5),
        ("disable-logging = true", "log.access", "off"),
        ("disable-logging = false", "log.access", "stderr"),
        ("stats = 127.0.0.1:9191", "admin.bind", "127.0.0.1:9191"),
        ("enable-proxy-protocol = 1", "proxy.protocol", True),
        ("base = src\nchdir = %(base)", "app.directory", "src"),
        ("set-ph = base=src\nchdir = %(base)", "app.directory", "src"),
        ("if-env = X\nharakiri = 3\nendif =\nlisten = 7", "timeouts.request", None),
        ("if-env = X\nharakiri = 3\nendif =\nlisten = 7", "listen.backlog", 7),
        ("force-cwd = x\nharakiri = 3", "timeouts.request", 3.0),
        ("; listen = 7\n# listen = 8", "listen.backlog", None),
        ("[other]\nlisten = 7", "listen.backlog", None),
    ],
    ids=str,
)  # fmt: skip
def test_values_of_uwsgi(text: str, path: str, value: object, folder: Folder) -> None:
    (folder.path / "src").mkdir()
    config_text = uwsgi(text, folder)
    assert written(config_text, path) == value
    folder.load(config_text)


def test_file_of_an_application_becomes_a_module(folder: Folder) -> None:
    (folder.path / "src").mkdir()
    source = folder.path / "src"
    file = folder.write(
        "uwsgi.ini", f"[uwsgi]\nchdir = {source}\nwsgi-file = {source}/shop/wsgi.py\ncallable = a\n"
    )
    text = uwsgi_settings.migrate(uwsgi_file.read_ini(file), "a test").to_toml()
    assert written(text, "app.target") == "shop.wsgi:a"
    folder.load(text)


def test_static_folders(folder: Folder) -> None:
    for name in ("static", "media"):
        (folder.path / name).mkdir()
    text = uwsgi(
        "static-map = /static=static\nstatic-map = /media=media\n"
        "static-expires = /* 3600\nstatic-index = index.html\n",
        folder,
    )
    assert tomli.loads(text)["static"] == [
        {
            "route": f"/{name}",
            "directory": name,
            "fallthrough": True,
            "index": "index.html",
            "cache_control": "max-age=3600",
        }
        for name in ("static", "media")
    ]
    folder.load(text)


def test_options_that_are_not_known_are_named(folder: Folder) -> None:
    text = uwsgi("frobnicate = 3\nbase = x\nother = %(base)\nmystery = %(unset)\n", folder)
    assert "frobnicate = 3: not known to serve-zig migrate." in notes(text)
    assert "mystery = %(unset): not evaluated" in notes(text)
    assert "base =" not in notes(text)
    folder.load(text)


def test_parts_of_the_files_own_path(folder: Folder) -> None:
    text = uwsgi("chdir = %d\nhttp-socket = %dapp.sock\n", folder)
    assert written(text, "app.directory") == f"{folder.path}/"
    assert written(text, "listen.bind") == [f"unix:{folder.path}/app.sock"]
    folder.load(text)


def test_command_line_of_uwsgi(folder: Folder) -> None:
    folder.write("uwsgi.ini", "[uwsgi]\nthreads = 3\nenv = KEY=hunter2\n")
    line = "uwsgi --ini uwsgi.ini --http :80 -M --enable-threads -p 2 --module=hello:app -l7"
    done = folder.run(*line.split())
    assert done.returncode == 0, done.stderr
    loaded = folder.load(done.stdout)
    assert loaded.integer("concurrency.threads") == 6
    assert loaded.integer("listen.backlog") == 7
    assert loaded.strings("listen.bind") == [":80"]
    assert "hunter2" not in done.stdout


def test_ini_without_its_section_is_refused(folder: Folder) -> None:
    folder.write("a.ini", "[other]\nx = 1\n")
    done = folder.run("a.ini")
    assert done.returncode == 2
    assert "a.ini: no options in a section [uwsgi]" in done.stderr


# What is written.


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("", ":8000"),
        ("localhost", "localhost:8000"),
        ("[::1]", "[::1]:8000"),
        ("tcp://0.0.0.0:80", "0.0.0.0:80"),
        ("*:80", ":80"),
        ("0:80", ":80"),
        ("unix:a.sock", "unix:a.sock"),
        ("${A:-b:c}:${P:-80}", "${A:-b:c}:${P:-80}"),
        ("${A:-b:c}", "${A:-b:c}:8000"),
    ],
)
def test_addresses(theirs: str, ours: str) -> None:
    assert address(theirs) == ours


def test_document_keeps_what_the_server_would_refuse_out(folder: Folder) -> None:
    document = Document("a test")
    assert document.set("app.target", "hello:app")
    assert not document.set("concurrency.threads", 5000)
    assert not document.set("listen.bind", ["8000"])
    assert document.set("listen.bind", [Template("${HOST}:80"), ":80"], "why", "why")
    text = document.to_toml()
    assert "concurrency.threads = 5000: serve-zig takes no such value; found the" in notes(text)
    assert text.count("# why") == 1
    folder.load(text)


# docs/MIGRATING.md.


def test_guide_names_every_setting_of_gunicorn() -> None:
    guide = (REPOSITORY / "docs" / "MIGRATING.md").read_text("utf-8")
    section = guide.partition("## From gunicorn")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert set(OPTIONS) - named == set()


def test_guide_names_keys_that_exist() -> None:
    guide = (REPOSITORY / "docs" / "MIGRATING.md").read_text("utf-8")
    tables = "|".join(TABLES)
    named = set(re.findall(rf"`((?:{tables})\.\w+)`", guide))
    assert len(named) > 30
    assert named - set(KEYS_BY_PATH) == set()
