"""``serve-zig top [URL]``: what a running server does, live in the terminal.

Everything shown comes from /status of the admin listener; nothing is installed in the server and
the terminal needs nothing but the usual escape sequences.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import select
import shutil
import socket
import sys
import time

from serve_zig.addresses import (
    ActivatedAddress,
    AddressError,
    InheritedAddress,
    UnixAddress,
    parse_address,
)
from serve_zig.application_traceback import describe_exception
from serve_zig.config import FILE_DEFAULT
from serve_zig.config import load as load_config
from serve_zig.errors import EXIT_DRAINED, ConfigError, LauncherError
from serve_zig.logging import escape
from serve_zig.toml_format import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    Status = dict[str, Any]

_ADDRESS_DEFAULT = "127.0.0.1:9100"
_ANSWER_SECONDS = 5.0
_ANSWER_BYTES_MAX = 16 * 1024 * 1024
# The admin listener's own refusals, which say what to do.
_REFUSED = (403, 421)
_HISTORY = 60
_BARS = "▁▂▃▄▅▆▇█"
_PHASES = ("queue", "gil", "app", "write")

_SCREEN_ON = "\x1b[?1049h\x1b[?25l"
_SCREEN_OFF = "\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_LINE_END = "\x1b[K\r\n"
_BELOW = "\x1b[J"
_BOLD = "\x1b[1m"
_DIM = "\x1b[2m"
_PLAIN = "\x1b[0m"


def main(arguments: Sequence[str]) -> int:
    """Run ``serve-zig top`` and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="serve-zig top",
        description="Show what a running server does, read from its admin listener. q ends it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "url",
        nargs="?",
        help="of the admin listener: http://host:port, host:port or unix:/path (default: "
        f"admin.bind of the config file, else {_ADDRESS_DEFAULT})",
    )
    parser.add_argument("-c", "--config", metavar="FILE", default=FILE_DEFAULT)
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    if not 0.1 <= options.interval <= 3600:
        parser.error("--interval is from 0.1 to 3600 seconds")
    source = Source(options.url or _address_of(options.config))
    if options.once or not sys.stdout.isatty():
        return _print_once(source, options.interval)
    try:
        return _watch(source, options.interval)
    except KeyboardInterrupt:
        return EXIT_DRAINED


def _address_of(file: str) -> str:
    """Return admin.bind of a config file that can be read here, else the usual address."""
    if not os.path.exists(file):
        return _ADDRESS_DEFAULT
    try:
        return load_config(file).text("admin.bind") or _ADDRESS_DEFAULT
    except ConfigError:
        return _ADDRESS_DEFAULT


class Source:
    """The admin listener of a server. ``text`` is its address, as the user wrote it."""

    def __init__(self, text: str) -> None:
        self.text = text
        plain = text.removeprefix("http://").rstrip("/") if text.startswith("http://") else text
        try:
            address = parse_address(plain)
        except AddressError as error:
            raise ConfigError(f"serve-zig top: {error}") from None
        if isinstance(address, InheritedAddress | ActivatedAddress):
            raise ConfigError(f"serve-zig top: {text} is a descriptor of the server; name a port")
        self._path = address.path if isinstance(address, UnixAddress) else None
        self._host, self._port = "localhost", 0
        if not isinstance(address, UnixAddress):
            self._host = address.host or "127.0.0.1"
            self._port = address.port

    def status(self) -> Status:
        """Return what /status says; raise LauncherError."""
        try:
            with contextlib.closing(self._connect()) as connection:
                connection.request("GET", "/status")
                answer = connection.getresponse()
                body = answer.read(_ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise LauncherError(
                f"no admin listener answers at {self.text} ({reason}); name the address of "
                "admin.bind: serve-zig top http://host:port"
            ) from None
        if answer.status in _REFUSED:
            why = body[:200].decode("utf-8", "replace").strip()
            raise LauncherError(f"{self.text} answers {answer.status}: {why}")
        try:
            found = json.loads(body) if answer.status == 200 else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or "state" not in found:
            raise self._foreign(f"it answers /status with {answer.status}")
        return found

    def _foreign(self, why: str) -> LauncherError:
        return LauncherError(
            f"{self.text} is not the admin listener of a serve-zig ({why}); that is at "
            "admin.bind, and not where the application is served"
        )

    def not_understood(self, error: Exception) -> LauncherError:
        """Return what to raise for a status that cannot be shown."""
        return self._foreign(f"its /status cannot be read: {describe_exception(error)}")

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_ANSWER_SECONDS)
        if self._path is not None:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(_ANSWER_SECONDS)
            connection.sock.connect(self._path)
        return connection


class View:
    """Draws one status after the other; what is a rate is taken from the one before."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._before: Status | None = None
        self._before_at = 0.0
        self._rates: list[float] = []

    def lines(self, status: Status, now: float, width: int, height: int) -> list[str]:
        """Return the picture as lines of plain text, at most so many of at most such a width.

        Raises LauncherError where the status is not one. Who sent it may be anybody: what a
        terminal would obey is shown as an escape.
        """
        try:
            lines = [self._title(status), ""]
            if "counters" in status:
                lines += self._figures(status, now)
                lines += ["", *_table(status["requests"], max(0, height - len(lines) - 1))]
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise self._source.not_understood(error) from None
        self._before, self._before_at = status, now
        return [printable(line)[:width] for line in lines[:height]]

    def _title(self, status: Status) -> str:
        stalled = f" (stalled for {duration(status['stalled'])})" if status.get("stalled") else ""
        return (
            f"serve-zig {status['version']} · {status['state']}{stalled} · pid {status['pid']} · "
            f"up {duration(status['uptime'])} · Python {status['python']} · "
            f"{self._source.text}"
        )

    def _figures(self, status: Status, now: float) -> list[str]:
        before = self._before
        if before is None or "counters" not in before:
            before, self._before_at = status, now
        seconds = now - self._before_at
        answered = status["counters"]["requests"] - before["counters"]["requests"]
        rate = answered / seconds if seconds > 0 else 0.0
        self._rates = [*self._rates, rate][-_HISTORY:]
        slowest = quantile(status["latency"], before["latency"], 0.99)
        threads, counters = status["threads"], status["counters"]
        means = "   ".join(
            f"{phase} {duration(mean(status['latency'][phase], before['latency'][phase]))}"
            for phase in _PHASES
        )
        states = {name: count for name, count in status["connections"].items() if name != "limit"}
        shown = "   ".join(f"{name} {count}" for name, count in states.items() if count)
        return [
            f"requests     {amount(rate)}/s   p99 {duration(slowest)}   {bars(self._rates)}",
            f"phases       {means}",
            f"threads      {_gauge(threads)} {threads['running']} running, {threads['attaching']} "
            f"waiting for the GIL, {threads['polling']} polling, {threads['idle']} idle",
            f"queue        {status['queue']['depth']} of {status['queue']['limit']} waiting, "
            f"{status['requests_in_flight']} in flight, saturation {status['saturation']:.2f}",
            f"connections  {sum(states.values())}   {shown}",
            f"so far       {amount(counters['requests'])} requests, "
            f"{amount(counters['shed'] + counters['bad_requests'])} refused, "
            f"{amount(sum(counters['timeouts'].values()))} timed out, "
            f"{amount(counters['app_exceptions'])} exceptions, "
            f"{amount(counters['bytes_sent'])}B sent",
        ]


def _gauge(threads: Status, width: int = 20) -> str:
    limit = max(1, int(threads["limit"]))
    full = min(width, round(width * int(threads["running"]) / limit))
    return "[" + "█" * full + "·" * (width - full) + "]"


def _table(requests: list[Status], height: int) -> Iterator[str]:
    yield f"{'AGE':>9}  {'PHASE':<6} {'THREAD':<13} {'CLIENT':<16} REQUEST"
    for request in requests[: max(0, height - 1)]:
        thread = request["thread"]
        name = "" if thread is None or request["phase"] == "queue" else f"serve-zig-{thread}"
        yield (
            f"{duration(request['age']):>9}  {request['phase']:<6} {name:<13} "
            f"{escape(request['client']) or 'unix':<16} "
            f"{escape(request['method'])} {escape(request['target'])}"
        )


def mean(now: Status, before: Status) -> float:
    """Return the mean of what a histogram has got since ``before``, in seconds."""
    count = now["count"] - before["count"]
    return (now["sum"] - before["sum"]) / count if count > 0 else 0.0


def quantile(now: Status, before: Status, part: float) -> float:
    """Return a bound below which such a part of the requests since ``before`` were answered."""
    pairs = zip(now["request"]["buckets"], before["request"]["buckets"], strict=True)
    counts = [new - old for new, old in pairs]
    left = sum(counts) * part
    for index, count in enumerate(counts):
        left -= count
        if count > 0 and left <= 0:
            bound: float = now["bounds"][min(index, len(now["bounds"]) - 1)]
            return bound
    return 0.0


def duration(seconds: float) -> str:
    """Return a time with a unit in which it is easy to read."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:.1f} min"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    if seconds >= 0.001:
        return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else "1.0 s"
    return f"{round(seconds * 1e6)} µs"


def amount(value: float) -> str:
    """Return a number with at most four digits and the prefix of a thousand or a million."""
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            unit = 1e3 if prefix == "k" else limit
            return f"{value / unit:.3g} {prefix}"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def bars(values: list[float]) -> str:
    """Return a small chart, one character for each value."""
    top = max(values, default=0.0)
    if top <= 0:
        return ""
    return "".join(_BARS[min(7, int(value / top * 7.999))] for value in values)


def _print_once(source: Source, interval: float) -> int:
    view = View(source)
    size = shutil.get_terminal_size((110, 30))
    view.lines(source.status(), time.monotonic(), size.columns, size.lines)
    time.sleep(interval)
    lines = view.lines(source.status(), time.monotonic(), size.columns, size.lines)
    # Whatever the locale is: the picture has a few characters beyond ASCII.
    sys.stdout.buffer.write("".join(f"{line.rstrip()}\n" for line in lines).encode())
    sys.stdout.flush()
    return EXIT_DRAINED


def _watch(source: Source, interval: float) -> int:
    status: Status | None = source.status()
    view = View(source)
    with _raw_keys(), _screen():
        while True:
            began = time.monotonic()
            size = shutil.get_terminal_size()
            if status is None:
                lines = [f"no answer from {source.text}; trying again"]
            else:
                lines = view.lines(status, began, size.columns, size.lines - 1)
            _draw(lines)
            if _quits(max(0.05, interval - (time.monotonic() - began))):
                return EXIT_DRAINED
            try:
                status = source.status()
            except LauncherError:
                status = None


def _draw(lines: list[str]) -> None:
    shown = []
    for line in lines:
        if line.lstrip().startswith(("serve-zig ", "AGE ")):
            line = f"{_BOLD}{line}{_PLAIN}"
        elif line[:13].rstrip() in ("so far", "connections"):
            line = f"{_DIM}{line}{_PLAIN}"
        shown.append(line)
    text = _HOME + "".join(line + _LINE_END for line in shown) + _BELOW
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _quits(seconds: float) -> bool:
    """Wait so long for a key; whether it is one that ends the view."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            key = os.read(sys.stdin.fileno(), 1)
            if key in (b"q", b"Q", b"\x1b", b""):
                return True
    return False


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    sys.stdout.write(_SCREEN_ON)
    sys.stdout.flush()
    try:
        yield
    finally:
        sys.stdout.write(_SCREEN_OFF)
        sys.stdout.flush()


@contextlib.contextmanager
def _raw_keys() -> Iterator[None]:
    """Get keys one by one, and the terminal's settings back at the end."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
