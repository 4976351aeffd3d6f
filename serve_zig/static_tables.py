"""What a [[static]] table may say: the rules for each value, and for several tables together."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from serve_zig.config import Config

TABLES_MAX = 64
"""Each request is compared with the route of each table."""

_ROUTE_BYTES_MAX = 1024
# What the core has room for in a response head, and in a file's name.
_VALUE_BYTES_MAX = 255

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_route(route: str) -> None:
    """Raise ValueError where no path could match the route, or none that is served."""
    if not route.startswith("/"):
        raise ValueError(
            f'"{route}" does not begin with a slash; write the path that URLs begin with, such as '
            '"/static"'
        )
    if _CONTROL.search(route) or any(one in route for one in "?#%\\"):
        raise ValueError(
            f'"{route}" holds a character that no route may hold; write the path as it is decoded, '
            "without ?, #, %, backslashes and control characters"
        )
    segments = route.strip("/").split("/")
    if segments != [""] and any(one in ("", ".", "..") for one in segments):
        raise ValueError(f'"{route}" has an empty segment or a dot segment; leave it out')
    if len(route.encode("utf-8", "replace")) > _ROUTE_BYTES_MAX:
        raise ValueError(f"a route may have {_ROUTE_BYTES_MAX} bytes; write a shorter one")


def check_cache_control(value: str) -> None:
    """Raise ValueError for what is no field value."""
    if re.fullmatch(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?", value) is None:
        raise ValueError(
            "a Cache-Control field holds printable ASCII without spaces at its ends, such as "
            '"public, max-age=3600"'
        )
    if len(value) > _VALUE_BYTES_MAX:
        raise ValueError(f"a Cache-Control field may have {_VALUE_BYTES_MAX} bytes; shorten it")


def check_index(name: str) -> None:
    """Raise ValueError for what is no name of a file that would be served."""
    if "/" in name or "\\" in name or _CONTROL.search(name) or name.startswith("."):
        raise ValueError(
            f'"{name}" is not the name of a file that would be served; write a name without '
            'slashes and without a dot in front, such as "index.html"'
        )
    if len(name.encode("utf-8", "replace")) > _VALUE_BYTES_MAX:
        raise ValueError(f"the name of a file may have {_VALUE_BYTES_MAX} bytes; shorten it")


def resolve_directory(config: Config, path: str, base: str, problems: list[str]) -> str:
    """Return the absolute directory that the key ``path`` names, relative to ``base``."""
    directory = os.path.normpath(os.path.join(base, config.text(path)))
    if not os.path.isdir(directory):
        what = "is not a directory" if os.path.exists(directory) else "does not exist"
        problems.append(
            f"{config.place(path)}: {directory} {what}; name the directory that holds the files, "
            "relative to the config file"
        )
    elif not os.access(directory, os.R_OK | os.X_OK):
        problems.append(
            f"{config.place(path)}: {directory} may not be read; let the user that serves read it"
        )
    return directory


def check_tables(config: Config, problems: list[str]) -> None:
    """Report tables that cannot stand beside one another."""
    count = config.count("static")
    if count > TABLES_MAX:
        problems.append(f"{config.place('static')}: {count} tables; allowed are {TABLES_MAX}")
    known: dict[str, int] = {}
    for index in range(count):
        route = config.text(f"static.{index}.route")
        first = known.setdefault(route.rstrip("/"), index)
        if first != index:
            problems.append(
                f"{config.place(f'static.{index}.route')}: the route "
                f'"{route}" is that of static.{first}, too; remove one of the tables'
            )


def core_tables(config: Config) -> list[tuple[str, str, str, str, bool]]:
    """Return the tables as the core takes them."""
    return [
        (
            config.text(f"static.{index}.route"),
            config.text(f"static.{index}.directory"),
            config.text(f"static.{index}.cache_control"),
            config.text(f"static.{index}.index"),
            config.boolean(f"static.{index}.fallthrough"),
        )
        for index in range(config.count("static"))
    ]
