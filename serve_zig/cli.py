"""The command line: what is asked for, and the exit status.

A user's mistake ends in messages on stderr, never in a traceback.
"""

from __future__ import annotations

import argparse
import sys

from serve_zig import stderr
from serve_zig.application import load as load_application
from serve_zig.config import FILE_DEFAULT, Config
from serve_zig.config import load as load_config
from serve_zig.errors import EXIT_DRAINED, ConfigError, LauncherError
from serve_zig.hooks import Hook
from serve_zig.init_process import run_as_init
from serve_zig.process_end import end_now
from serve_zig.progress import announced
from serve_zig.target import parse_target
from serve_zig.threads import names_of_waited_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Each has options of its own, so it stands first on the command line.
_COMMANDS = ("init", "migrate", "schema", "top")

# What a shell reports for a program that SIGINT ended.
_EXIT_INTERRUPTED = 130

_EPILOG = """\
commands:
  serve-zig init     write a serve.toml for the application of this folder
  serve-zig migrate  print the serve.toml for a gunicorn.conf.py, uwsgi.ini or command
  serve-zig schema   print the JSON Schema of serve.toml, for editors
  serve-zig top      show what a running server does, live in the terminal

exit status:
  0  after a clean drain
  1  the server failed
  2  the config is wrong
  3  the application could not be imported
  4  the drain timed out with requests still running
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] in _COMMANDS:
            return _run_command(given[0], given[1:])
        return _run(_parse(given))
    except LauncherError as error:
        stderr.tell(error.report())
        return error.exit_status
    except KeyboardInterrupt:
        stderr.tell("serve-zig: interrupted\n")
        return _EXIT_INTERRUPTED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="serve-zig",
        description="Serve the WSGI application that serve.toml names.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=FILE_DEFAULT,
        help="the config file (default: %(default)s in the current folder)",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override one key, such as listen.bind=127.0.0.1:9000 (repeatable; the value is "
        "TOML, a bare word is a string)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="load the config and import the application, print the resolved config, exit",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="development: restart the server when a source file changes",
    )
    parser.add_argument(
        "--version", action="store_true", help="print the versions of serve-zig, Python and Zig"
    )
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    options, unknown = parser.parse_known_args(arguments)
    # A command that is not known has options that are not known either.
    if unknown and not options.command:
        if _is_of_gunicorn(unknown[0]):
            raise _foreign_option(unknown[0], "package.module:callable")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.unknown = unknown
    return options


def _run(options: argparse.Namespace) -> int:
    if options.version:
        return _print_version()
    if options.command:
        raise _unknown_command(options.command, options.unknown)
    if options.reload and not options.check:
        from serve_zig import reload

        return reload.supervise(options.config, options.overrides)
    config = load_config(options.config, options.overrides)
    if options.check:
        return _check(config)
    status = run_as_init()
    if status is not None:
        return status
    # Imported here: --check and the refusals need neither sockets nor threads.
    from serve_zig.runner import serve

    return serve(config)


def _run_command(command: str, arguments: list[str]) -> int:
    # Each is imported where it is run: none costs the start of a server anything.
    match command:
        case "init":
            from serve_zig.init_command import main as command_main
        case "migrate":
            from serve_zig.migrate_command import main as command_main
        case "top":
            from serve_zig.top import main as command_main
        case _:
            from serve_zig.json_schema import main as command_main
    return command_main(arguments)


def _unknown_command(words: list[str], unknown: list[str]) -> ConfigError:
    first = words[0]
    if first in _COMMANDS:
        return ConfigError(f"the command {first} stands first: serve-zig {first}")
    if unknown:
        application = next((word for word in words if ":" in word[1:]), "package.module:callable")
        return _foreign_option(unknown[0], application)
    if first.endswith((".py", ".ini")):
        return ConfigError(
            f'"{first}" is not a command; a serve.toml is made from it by: serve-zig migrate '
            f"{first} > serve.toml"
        )
    if first.endswith(".toml"):
        return ConfigError(f'"{first}" is not a command; name a config with -c: -c {first}')
    if ":" in first[1:]:
        return ConfigError(
            f'"{first}" is not a command; name the application in the config file, or with '
            f"--set app.target={first}"
        )
    return ConfigError(f'"{first}" is not a command; see serve-zig --help')


def _is_of_gunicorn(option: str) -> bool:
    # Imported here: only a mistake needs it.
    from serve_zig.gunicorn_settings import OPTIONS

    name = option.partition("=")[0] if option.startswith("--") else option[:2]
    return any(name in flags for _, flags in OPTIONS.values())


def _foreign_option(option: str, application: str) -> ConfigError:
    return ConfigError(
        f"there is no option {option}; settings are keys of serve.toml. The command of another "
        f"server becomes one by: serve-zig migrate gunicorn {option} ... {application}"
    )


def _print_version() -> int:
    from serve_zig.runner import build_information

    build = build_information()
    python = ".".join(map(str, sys.version_info[:3]))
    print(
        f"serve-zig {build['version']} ({sys.implementation.name} {python}, Zig {build['zig']}, "
        f"{build['optimize']}, {build['target']})"
    )
    return EXIT_DRAINED


def _check(config: Config) -> int:
    """Import the application and print the resolved config; nothing is started."""
    for text in config.warnings:
        stderr.tell(f"serve-zig: warning: {text}\n")
    target = parse_target(config.text("app.target"))
    stdout = sys.stdout
    # What the application prints while it is imported must not end up in the TOML.
    sys.stdout = sys.stderr
    try:
        with announced(
            f"importing {target.text}", lambda text: stderr.tell(f"serve-zig: {text}\n")
        ):
            load_application(target, config.text("app.directory"), config.place("app.target"))
        for path in ("app.startup", "app.shutdown"):
            Hook(config, path).load()
    finally:
        sys.stdout = stdout
    # TOML is UTF-8, whatever the terminal's encoding is.
    sys.stdout.buffer.write(config.to_toml().encode("utf-8"))
    sys.stdout.flush()
    if names_of_waited_for():
        # The import has started a thread, which the interpreter would wait for.
        end_now(EXIT_DRAINED)
    return EXIT_DRAINED
