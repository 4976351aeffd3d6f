"""``serve-zig init``: a commented serve.toml for the application of a folder.

The application is found by reading the sources (discovery.py); none of it is imported or run.
"""

from __future__ import annotations

import argparse
import os
import sys

from serve_zig import discovery, schema, toml_format
from serve_zig.config import FILE_DEFAULT
from serve_zig.discovery import Candidate
from serve_zig.errors import EXIT_DRAINED, ConfigError
from serve_zig.interpolation import escape
from serve_zig.target import TargetError, parse_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SHOWN_MAX = 12

_NEXT = """\
Next: serve-zig{option} --check imports the application and shows the whole config;
      serve-zig{option} serves it.
"""

_ASGI = (
    "serve-zig serves WSGI applications. Serve it with an ASGI server (uvicorn, hypercorn), or "
    "wrap it in a module of your own: app = a2wsgi.ASGIMiddleware({name})"
)

# The keys that a first config shows beside [app], each with a comment. All but the first are
# commented out: a default that is not written down changes with the server.
_SHOWN: tuple[tuple[str, str], ...] = (
    ("listen.bind", 'in a container: ":${PORT:-8000}"; also "unix:/run/app.sock", "fd://3"'),
    ("concurrency.threads", "the most application calls in progress at once"),
    ("concurrency.queue", "requests waiting for a thread; past it: 503"),
    ("limits.body", "the largest request body: 413"),
    ("limits.body_memory", "of one body held in memory; the rest is in a temporary file"),
    ("timeouts.keep_alive", "idle between requests; longer than the load balancer's own"),
    ("timeouts.request", "for one application call; 0: none"),
    ("timeouts.drain_delay", "after SIGTERM go on accepting so long (Kubernetes: 5.0)"),
    ("timeouts.drain", "after SIGTERM, for what is in flight"),
    ("proxy.trusted", "the reverse proxies whose X-Forwarded-For is believed"),
    ("log.access", 'or "stdout", "stderr", a file path'),
    ("admin.bind", '"127.0.0.1:9100": health, metrics and status'),
)


def main(arguments: Sequence[str]) -> int:
    """Run ``serve-zig init`` and return the exit status. Raises ConfigError."""
    options = _parse(arguments)
    file: str = options.config
    folder = os.path.dirname(os.path.abspath(file))
    if not os.path.isdir(folder):
        raise ConfigError(f"{file}: the folder {folder} does not exist; make it first")
    if os.path.lexists(file) and not options.force:
        raise ConfigError(
            f"{file}: exists already and is left as it is; --force writes it anew, -c names another"
        )
    found = discovery.search(folder)
    chosen = _named(options.target, found, folder) if options.target else _likeliest(found, folder)
    sys.stdout.write(_report(found, chosen, folder))
    _write(file, text_of(chosen, folder), is_new=not options.force)
    option = "" if file == FILE_DEFAULT else f" -c {file}"
    sys.stdout.write(f"Wrote {file}.\n{_NEXT.format(option=option)}")
    return EXIT_DRAINED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="serve-zig init",
        description="Write a commented serve.toml for the application of the current folder. It "
        "is found by reading the sources: nothing is imported or run.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=FILE_DEFAULT,
        help="the file to write (default: %(default)s); its folder is searched",
    )
    parser.add_argument(
        "--target", metavar="TARGET", help='the application, "package.module:callable"'
    )
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    return parser.parse_args(arguments)


def _likeliest(found: discovery.Search, folder: str) -> Candidate:
    usable = [one for one in found.candidates if not one.is_asgi and not one.unusable]
    if not usable:
        raise ConfigError(*_nothing_found(found, folder))
    best = usable[0]
    rivals = [one for one in usable if one.score == best.score]
    if len(rivals) == 1:
        return best
    listed = [f"  {one.file}:{one.line}: {one.what}, {one.target}" for one in rivals[:_SHOWN_MAX]]
    left_out = [f"  and {len(rivals) - _SHOWN_MAX} more"] if len(rivals) > _SHOWN_MAX else []
    raise ConfigError(
        f"{len(rivals)} applications look equally likely; name one with --target, or search one "
        "folder alone: -c FOLDER/serve.toml",
        *listed,
        *left_out,
    )


def _nothing_found(found: discovery.Search, folder: str) -> list[str]:
    for one in found.candidates:
        if one.is_asgi:
            name = one.target.rpartition(":")[2]
            where = f"{one.file}:{one.line}: {one.target} is {one.what}, which speaks ASGI"
            return [f"{where}; {_ASGI.format(name=name)}"]
    problems = [
        f"{one.file}:{one.line}: {one.target} makes {one.what}, but {one.unusable}; write a "
        "function that needs none, and name it with --target"
        for one in found.candidates
    ]
    if os.path.isfile(os.path.join(folder, "manage.py")):
        problems.append(
            "manage.py: a Django project without a wsgi.py; set DJANGO_SETTINGS_MODULE in the "
            'environment and name --target "django.core.wsgi:get_wsgi_application()"'
        )
    problems += [f"{place}; mend the file" for place in found.unreadable[:_SHOWN_MAX]]
    if not problems:
        problems.append(
            f"no WSGI application is found in {folder}; go to the folder that holds it, or name it "
            'with --target "package.module:callable"'
        )
    return problems


def _named(text: str, found: discovery.Search, folder: str) -> Candidate:
    """Return the application that ``--target`` names, found or not."""
    try:
        target = parse_target(text)
    except TargetError as error:
        raise ConfigError(f"--target: {error}") from None
    named = [one for one in found.candidates if one.target == text]
    for one in named:
        if one.score == named[-1].score and one is not named[-1]:
            raise ConfigError(
                f"--target: {text} is found in {one.file} and in {named[-1].file}; search one "
                "folder alone: -c FOLDER/serve.toml"
            )
        if one.is_asgi:
            raise ConfigError(*_nothing_found(_only(one), folder))
        if one.unusable:
            raise ConfigError(f"--target: {text} makes {one.what}, but {one.unusable}")
        return one
    directory = discovery.find_directory(folder, target.module)
    return Candidate.given(text, directory or folder)


def _only(candidate: Candidate) -> discovery.Search:
    found = discovery.Search()
    found.candidates.append(candidate)
    return found


def _report(found: discovery.Search, chosen: Candidate, folder: str) -> str:
    others = [one for one in found.candidates if one is not chosen]
    lines = []
    if chosen.file:
        lines.append(f"Found {_line_of(chosen)}")
    else:
        lines.append(f"Takes {chosen.target}, as --target says")
    if others:
        lines.append("Left aside; --target names another:")
        for one in others[:_SHOWN_MAX]:
            why = " (ASGI: not served)" if one.is_asgi else f" ({one.unusable})"
            lines.append(f"  {_line_of(one)}{why if one.is_asgi or one.unusable else ''}")
        if len(others) > _SHOWN_MAX:
            lines.append(f"  and {len(others) - _SHOWN_MAX} more")
    lines += [f"Not read: {place}" for place in found.unreadable[:_SHOWN_MAX]]
    if found.is_cut:
        lines.append("Not every file was read: there are too many, or they lie too deep.")
    return "".join(f"{toml_format.printable(line)}\n" for line in lines)


def _line_of(one: Candidate) -> str:
    return f"{one.file}:{one.line}: {one.what}, {one.target}"


def text_of(chosen: Candidate, folder: str) -> str:
    """Return the file for an application; ``folder`` is where the file will be."""
    directory = os.path.relpath(chosen.directory, folder)
    origin = f"# {chosen.what[:1].upper()}{chosen.what[1:]}, " if chosen.file else "# "
    origin += f"found in {chosen.file}, line {chosen.line}." if chosen.file else "Given by hand."
    lines = [
        "# The configuration of serve-zig. Times are seconds; sizes are bytes, or strings with a",
        "# unit; strings may hold ${NAME} or ${NAME:-default} from the environment. What is",
        "# commented out names the default; serve-zig --check prints every key. Editors complete",
        "# and check this file after serve-zig schema > serve.schema.json and, as its first line,",
        "# #:schema ./serve.schema.json",
        "",
        "[app]",
        toml_format.printable(origin),
        f"target = {toml_format.string(escape(chosen.target))}",
        f"directory = {toml_format.string(escape(directory))}".ljust(34)
        + " # first on sys.path, relative to this file",
    ]
    table = "app"
    for path, comment in _SHOWN:
        key = schema.KEYS_BY_PATH[path]
        if key.table != table:
            table = key.table
            lines += ["", f"[{table}]"]
        hash_mark = "" if path == "listen.bind" else "# "
        lines.append(f"{f'{hash_mark}{key.name} = {key.default_toml}':<34} # {comment}")
    return "\n".join([*lines, ""])


def _write(file: str, text: str, is_new: bool) -> None:
    # "x" also when nothing was there a moment ago: what came meanwhile is not overwritten.
    try:
        with open(file, "x" if is_new else "w", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise ConfigError(f"{file}: exists already and is left as it is") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"{file}: cannot be written ({reason}); name another with -c") from None
