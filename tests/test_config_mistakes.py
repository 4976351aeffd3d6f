"""Mistakes in a config: what the user needs to know next, and all of them at once."""

import signal
from pathlib import Path
from typing import Any

import pytest
import tomli

from serve_zig.addresses import collide, parse_address
from serve_zig.config import load
from serve_zig.errors import ConfigError
from serve_zig.gunicorn_settings import OPTIONS
from serve_zig.unknown_keys import elsewhere
from test_cli import Project, fails
from test_config import MINIMAL, Loader

# Files.


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    """Return a loader in an empty folder."""
    return Loader(tmp_path)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project in a folder of its own."""
    return Project(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gunicorn.conf.py", "workers = 4\ndef on_exit(server): pass\n"),
        # This one is valid TOML, by chance.
        ("gunicorn.conf.py", 'bind = "127.0.0.1:80"\nworkers = 4\n'),
        ("uwsgi.ini", "[uwsgi]\nmodule = shop:app\n"),
    ],
)
def test_config_of_another_server_is_to_be_migrated(project: Project, name: str, text: str) -> None:
    (project.folder / name).write_text(text, "utf-8")
    (line,) = fails(project.run("-c", name), 2)
    assert line.startswith(f"serve-zig: error: {name}: a")
    assert line.endswith(f"serve-zig migrate {name} > serve.toml")
    (line,) = fails(project.run(name), 2)
    assert line.endswith(f"serve-zig migrate {name} > serve.toml")


def test_missing_config_beside_that_of_another_server(project: Project) -> None:
    (project.folder / "serve.toml").unlink()
    (line,) = fails(project.run(), 2)
    assert "(serve-zig init does)" in line
    (project.folder / "gunicorn.conf.py").write_text("", "utf-8")
    (line,) = fails(project.run(), 2)
    assert "(serve-zig migrate gunicorn.conf.py > serve.toml does" in line


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["-w", "4", "shop:app"], "there is no option -w; settings are keys of serve.toml. The "),
        (["--workers=4"], "there is no option --workers=4; settings are keys of serve.toml. The "),
        (["shop:app", "-b:80"], "there is no option -b:80; "),
        (["serve.toml"], '"serve.toml" is not a command; name a config with -c: -c serve.toml'),
    ],
)
def test_command_line_of_another_server(project: Project, arguments: list[str], what: str) -> None:
    (line,) = fails(project.run(*arguments), 2)
    assert line.startswith(f"serve-zig: error: {what}")
    if arguments[0] != "serve.toml":
        assert "serve-zig migrate gunicorn" in line


# Keys of which the function is elsewhere.


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            '[tls]\ncertificate = "x"\n',
            ["serve.toml:3: tls: unknown table; serve-zig speaks plain HTTP, and TLS ends in the"],
        ),
        (
            "[server]\nworkers = 4\nthreads = 2\n",
            [
                "serve.toml:3: server: unknown table; the tables are app",
                "serve.toml:4: server.workers: unknown key; serve-zig has one process with thr",
            ],
        ),
        (
            "[concurrency]\nworkers = 4\n",
            ["serve.toml:4: concurrency.workers: unknown key; serve-zig has one process with "],
        ),
        (
            "[limits]\nmax-requests = 4\n",
            ["serve.toml:4: limits.max-requests: unknown key; write limits.requests"],
        ),
        ("[http2]\nenabled = true\n", ["serve.toml:3: http2: unknown table; serve-zig speaks H"]),
    ],
)
def test_unknown_key_says_where_its_function_is(
    loader: Loader, text: str, problems: list[str]
) -> None:
    found = loader.refuse(MINIMAL + text)
    assert len(found) == len(problems), found
    for one, expected in zip(found, problems, strict=True):
        assert one.startswith(expected), one


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("tls=true", "--set: tls: unknown key; serve-zig speaks plain HTTP, and TLS ends in"),
        ("tls.key=x", "--set: tls.key: unknown table; serve-zig speaks plain HTTP, and TLS"),
        ("workers=4", "--set: workers: unknown key; serve-zig has one process with threads"),
        ("server.workers=4", "--set: server.workers: unknown key; serve-zig has one process"),
    ],
)
def test_override_of_an_unknown_key_says_so_too(loader: Loader, override: str, what: str) -> None:
    (problem,) = loader.refuse(MINIMAL, override)
    assert problem.startswith(what)


def test_usual_settings_of_gunicorn_are_known_by_name() -> None:
    usual = {"workers", "worker_class", "preload_app", "certfile", "keyfile", "timeout", "daemon"}
    usual |= {"keepalive", "graceful_timeout", "max_requests", "max_requests_jitter", "accesslog"}
    usual |= {"errorlog", "loglevel", "forwarded_allow_ips", "chdir", "wsgi_app", "pidfile"}
    assert usual <= set(OPTIONS)
    assert [name for name in usual if not elsewhere(name)] == []


# TOML.


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            '[app]\ntarget = "a:b"\n\n[app]\ndirectory = "."\n',
            "serve.toml:4:5: not valid TOML: [app] is declared twice, first at line 1; put all",
        ),
        (
            'app.target = "a:b"\n[app]\ndirectory = "."\n',
            "serve.toml:2:5: not valid TOML: [app] is declared twice, first at line 1; put all",
        ),
        (
            '[app]\ntarget = "a:b"\n# again\ntarget = "a:b"\n',
            "serve.toml:4:15: not valid TOML: app.target is given twice, first at line 2; remove",
        ),
        (
            '[[static]]\nroute = "/"\n[static]\n',
            "serve.toml:3:8: not valid TOML: [static] is declared twice, first at line 1; put",
        ),
    ],
)
def test_what_is_there_twice_is_named_with_its_first_place(
    loader: Loader, text: str, what: str
) -> None:
    (problem,) = loader.refuse(text)
    assert problem.startswith(what)


class OldError(tomli.TOMLDecodeError):
    """An error as tomli 2.0 raises it: a message and nothing else."""

    def __init__(self, text: str) -> None:
        ValueError.__init__(self, text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Invalid value (at line 3, column 10)", "serve.toml:3:10: not valid TOML: Invalid val"),
        ("Invalid value (at end of document)", "serve.toml: not valid TOML: Invalid value; mend"),
        ("Invalid value", "serve.toml: not valid TOML: Invalid value; mend"),
        ("", "serve.toml: not valid TOML: "),
        (
            "Cannot declare ('app',) twice (at line 3, column 5)",
            "serve.toml:3:5: not valid TOML: [app] is declared twice, first at line 1; ",
        ),
    ],
)
def test_error_of_the_reader_may_lack_everything(
    loader: Loader, monkeypatch: pytest.MonkeyPatch, text: str, what: str
) -> None:
    def fail() -> dict[str, Any]:
        raise OldError(text)

    assert not hasattr(OldError(text), "lineno")
    whole = tomli.loads
    document = "[app]\n\n[app]\n"
    with monkeypatch.context() as patch:
        patch.setattr(tomli, "loads", lambda given: fail() if given == document else whole(given))
        (problem,) = loader.refuse(document)
    assert problem.startswith(what)


def test_reader_has_the_attributes_from_the_version_on_that_is_required() -> None:
    error = tomli.TOMLDecodeError("what", "a = \n", 4)
    assert (error.msg, error.lineno, error.colno) == ("what", 1, 5)


# Lists.


def test_every_bad_entry_of_a_list_is_told(loader: Loader) -> None:
    problems = loader.refuse(
        f"{MINIMAL}[listen]\nbind = ['a', ':99999', '127.0.0.1:1', 5, 'http://x', '${{NONE}}']\n"
        "[proxy]\ntrusted = ['x', '10.0.0.0/8', 'y']\n[log]\naccess_exclude = ['a', '/b', 'c d']\n"
    )
    assert [problem[: problem.index(";")] for problem in problems] == [
        "serve.toml:4: listen.bind: the environment variable NONE is not set",
        'serve.toml:4: listen.bind: found "a", which has no port',
        'serve.toml:4: listen.bind: found ":99999", where "99999" is not a port',
        "serve.toml:4: listen.bind: found the integer 5 in the list",
        'serve.toml:4: listen.bind: found "http://x"',
        'serve.toml:6: proxy.trusted: found "x"',
        'serve.toml:6: proxy.trusted: found "y"',
        'serve.toml:8: log.access_exclude: found the string "a" in the list',
        'serve.toml:8: log.access_exclude: found the string "c d" in the list',
    ]


# Combinations.


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "[limits]\nbody = '1 MiB'\nbody_memory = '2 MiB'\n",
            "serve.toml:5: limits.body_memory: 2 MiB is more than limits.body allows, 1 MiB; ",
        ),
        (
            "[limits]\nresponse_memory = '20 MiB'\nbuffer_memory = '10 MiB'\n",
            "serve.toml:4: limits.response_memory: 20 MiB is more than limits.buffer_memory allo",
        ),
        (
            "[limits]\nrequests_jitter = 5\n",
            "serve.toml:4: limits.requests_jitter: has no effect without limits.requests, which ",
        ),
        (
            "[timeouts]\nrequest_action = 'answer'\n",
            "serve.toml:4: timeouts.request_action: has no effect without timeouts.request, whi",
        ),
    ],
)
def test_combination_that_makes_no_sense(loader: Loader, text: str, what: str) -> None:
    (problem,) = loader.refuse(MINIMAL + text)
    assert problem.startswith(what)


@pytest.mark.parametrize(
    "text",
    [
        "body = '100 KiB'",
        "body = 1",
        "buffer_memory = '1 MiB'",
        "body_memory = '1 GiB'",
        "response_memory = '1 GiB'",
        "requests = 5",
        "requests = 5\nrequests_jitter = 5",
        "requests_jitter = 0",
        "head = '1 KiB'",
    ],
)
def test_default_contradicts_nothing(loader: Loader, text: str) -> None:
    """And what --check prints, with every key written, is as good."""
    loaded = loader.load(f"{MINIMAL}[limits]\n{text}\n")
    assert loader.load(loaded.to_toml()).to_tables() == loaded.to_tables()


def test_default_that_gives_way_is_told_of(loader: Loader) -> None:
    loaded = loader.load(f"{MINIMAL}[limits]\nresponse_memory = '1 GiB'\n")
    assert loaded.integer("limits.buffer_memory") == 1 << 30
    (warning,) = loaded.warnings
    assert warning.endswith(
        'limits.response_memory: limits.buffer_memory is 1 GiB as well, instead of "256 MiB"; '
        "set it"
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[log]\naccess_exclude = '/health'\n", "log.access_exclude: has no effect without log.ac"),
        ("[proxy]\nheaders = 'forwarded'\n", "proxy.headers: has no effect without proxy.trusted"),
        ("[telemetry]\nsample_ratio = 0.5\n", "telemetry.sample_ratio: has no effect without tel"),
    ],
)
def test_setting_of_what_is_off_is_a_warning(project: Project, text: str, what: str) -> None:
    project.configure(f'{MINIMAL}[listen]\nbind = "127.0.0.1:0"\n{text}')
    done = project.run("--check")
    assert done.returncode == 0
    assert f"serve-zig: warning: serve.toml:6: {what}" in done.stderr
    server = project.start()
    server.wait_log(f"warning serve.toml:6: {what}")
    server.port()
    assert server.end(signal.SIGTERM) == 0


def test_access_log_named_by_a_dash_is_stdout(project: Project) -> None:
    project.configure(f'{MINIMAL}[log]\naccess = "-"\n')
    done = project.run("--check")
    assert done.returncode == 0
    assert 'access = "stdout"' in done.stdout
    assert not (project.folder / "-").exists()


# Addresses.


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        (":80", "127.0.0.1:80", True),
        (":80", "[::1]:80", True),
        (":80", "shop.example:80", True),
        ("0.0.0.0:80", "192.0.2.7:80", True),
        ("0.0.0.0:80", "[::1]:80", False),
        ("0.0.0.0:80", "[::]:80", False),
        ("[::]:80", "[2001:db8::7]:80", True),
        ("[::1]:80", "[0:0::1]:80", True),
        ("localhost:80", "127.0.0.1:80", True),
        ("Shop.example:80", "shop.example:80", True),
        ("127.0.0.1:80", "127.0.0.2:80", False),
        ("unix:/run/a.sock", "unix:/run/x/../a.sock", True),
        ("unix:/run/a.sock", "unix:/run/b.sock", False),
        ("fd://3", "fd://3", True),
        ("fd://3", "fd://4", False),
        ("fd://systemd", "fd://systemd", True),
        ("fd://systemd", "fd://systemd:ops", False),
        ("fd://systemd:ops", "fd://systemd:ops", True),
        ("fd://3", "127.0.0.1:3", False),
    ],
)
def test_which_addresses_are_one(first: str, second: str, is_one: bool) -> None:
    assert collide(parse_address(first), parse_address(second)) == is_one
    assert collide(parse_address(second), parse_address(first)) == is_one


@pytest.mark.parametrize("own", ["127.0.0.1:8000", ":8000", "localhost:8000", "unix:a/../b.sock"])
def test_admin_listener_on_an_address_of_the_others(loader: Loader, own: str) -> None:
    """The system would say that somebody else has taken it."""
    text = f"{MINIMAL}[listen]\nbind = ['127.0.0.1:8000', 'unix:b.sock']\n[admin]\nbind = '{own}'\n"
    (problem,) = loader.refuse(text)
    assert problem.startswith("serve.toml:6: admin.bind: ")
    assert "is taken by listen.bind (" in problem


def test_listeners_that_are_one_address(project: Project) -> None:
    (line,) = fails(project.run("--set", 'listen.bind=[":17", "127.0.0.1:17"]'), 1)
    assert line.endswith('listen.bind: ":17" and "127.0.0.1:17" are one address; remove one')


def test_every_address_that_cannot_be_opened_is_told(project: Project) -> None:
    lines = fails(
        project.run("--set", 'listen.bind=["fd://77", "unix:/missing/x.sock", "fd://78"]'), 1
    )
    assert [line.partition("listen.bind: ")[2][:8] for line in lines] == [
        "fd://77:",
        '"unix:/m',
        "fd://78:",
    ]


@pytest.mark.parametrize("value", ["[" * 3000, "9" * 5000])
def test_value_that_the_reader_does_not_take_is_no_traceback(tmp_path: Path, value: str) -> None:
    """Nested too deeply, or an integer of thousands of digits."""
    file = tmp_path / "serve.toml"
    file.write_text(f'[app]\ntarget = "app:app"\n[limits]\nbody = {value}\n', "utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(str(file))
    file.write_text('[app]\ntarget = "app:app"\n', "utf-8")
    with pytest.raises(ConfigError, match=r"limits\.body"):
        load(str(file), [f"limits.body={value}"])
