"""``serve-zig --reload``, for development: a server that is started anew when a source changes.

A supervising process opens the listeners and keeps them; the server is its child and inherits them
as ``fd://N``. While one server ends and the next one starts, clients wait in the kernel's queue
instead of being refused. Whatever the sources do to the server, a syntax error, say, leaves the
supervisor running: it waits for the next change.

The main thread acts on events alone: changes, signals and the child's end, each put into one queue
by a thread or a signal handler of its own.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

from serve_zig import stderr
from serve_zig.config import load
from serve_zig.errors import EXIT_DRAINED, EXIT_FAILED, ConfigError, LauncherError
from serve_zig.listeners import Listener, close_listeners, open_listeners
from serve_zig.logging import Log
from serve_zig.notify import Notifier
from serve_zig.signals import IGNORED, STOPS, Signals, ignore
from serve_zig.toml_format import strings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import FrameType
    from typing import Any

    from serve_zig.config import Config

    Event = tuple[str, object]
    Changes = Iterable[set[tuple[Any, str]]]

# How long a server that is replaced may go on with what is in flight: who has just saved a file
# waits for the new one.
_DRAIN_SECONDS_MAX = 5.0

# A server that ends with status 0 sooner than that, by itself, is not started at once again.
_LIFE_SECONDS_MIN = 1.0

# No balancer has to hear of a server that is replaced.
_HURRY = ["timeouts.drain_delay=0.0"]

# How long the first start waits for a watch to begin, which takes 50 ms where files can be watched.
_WATCH_SECONDS = 5.0

_SOURCES = (".py", ".pyi", ".pyx", ".pyd", ".so")
_SHOWN_MAX = 3

# The child. It gets the parent's sys.path, so that it imports what the parent would have.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from serve_zig.__main__ import run; from serve_zig.reload import serve_supervised; "
    "run(serve_supervised)"
)


def supervise(file: str, overrides: Sequence[str]) -> int:
    """Serve until a signal ends it, and return the exit status. Raises LauncherError."""
    watch = _watcher()
    config = load(file, overrides)
    supervisor = _Supervisor(file, overrides, config, watch)
    try:
        supervisor.install_signals()
        supervisor.open_listeners(config)
        supervisor.watch()
        supervisor.feed_watchdog()
        return supervisor.run()
    finally:
        supervisor.close()


def serve_supervised() -> int:
    """Run the command line as the supervisor's child: ``sys.argv[1]`` is the lifeline."""
    from serve_zig.cli import main

    # The terminal sends these to both; the supervisor says what is to be done.
    Signals.obeys_terminal = False
    signal.signal(signal.SIGINT, _ignore)
    signal.signal(signal.SIGQUIT, _ignore)
    lifeline = int(sys.argv.pop(1))
    os.set_inheritable(lifeline, False)
    threading.Thread(
        target=_end_with, args=(lifeline,), name="serve-zig-reload", daemon=True
    ).start()
    return main(sys.argv[1:])


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _end_with(lifeline: int) -> None:
    """Drain when the supervisor is gone, however it ended: nobody holds the other end then."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _watcher() -> Callable[..., Changes]:
    try:
        from watchfiles import watch
    except ImportError as error:
        raise ConfigError(
            f"--reload needs watchfiles ({error}); install it: pip install 'serve-zig[reload]'"
        ) from None
    return watch


class _StopOfWatch:
    """Whether a watch shall end. watchfiles asks for the first time 50 ms after it has begun."""

    def __init__(self, stopped: threading.Event) -> None:
        self.was_asked = threading.Event()
        self._stopped = stopped

    def is_set(self) -> bool:
        self.was_asked.set()
        return self._stopped.is_set()


class _Supervisor:
    """The listeners, the child, and what happens to them.

    ``_state`` is "waiting" without a child; with one it is "serving", or "replacing" or "ending"
    after it was told to drain.
    """

    def __init__(
        self, file: str, overrides: Sequence[str], config: Config, watch: Callable[..., Changes]
    ) -> None:
        self._file = file
        self._watch = watch
        self._watched: set[str] = set()
        self._overrides = list(overrides)
        self._config = config
        self._log = Log(config.text("log.level"), config.text("log.format"))
        # The supervisor speaks for the service, whose main process it is.
        self._notifier = Notifier(os.environ, self._log.warning)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._listeners: list[Listener] = []
        self._descriptors: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._state = "waiting"
        self._started = 0.0
        self._deadline: float | None = None
        self._impatience: list[Callable[[], None]] = []
        self._stopped = threading.Event()

    # What it listens on.

    def open_listeners(self, config: Config) -> None:
        """Open the listeners and let connections in, which wait for the child."""
        self._listeners = open_listeners(
            config.strings("listen.bind"),
            config.integer("listen.unix_mode"),
            config.place("listen.bind"),
        )
        for listener in self._listeners:
            listener.listen(config.integer("listen.backlog"))
        # The sockets must stay open as long as the files are theirs.
        self._descriptors = [listener.hand_over() for listener in self._listeners]

    def close(self) -> None:
        """Stop watching, end the child if it still runs, and close the listeners."""
        self._stopped.set()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            os.close(self._lifeline)
        self._close_listeners()

    def _close_listeners(self) -> None:
        close_listeners(self._listeners)
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._listeners, self._descriptors = [], []

    # What happens.

    def install_signals(self) -> None:
        """Take note of the signals; the main thread acts on them."""
        for number in (*STOPS, *IGNORED, signal.SIGHUP, signal.SIGUSR1):
            # SimpleQueue.put may be called by a handler while the main thread is inside get.
            signal.signal(number, lambda number, frame: self._events.put(("signal", number)))

    def watch(self) -> None:
        """Watch the application's directory and the config, as far as that is not done yet."""
        directory = self._config.text("app.directory")
        folder = os.path.dirname(os.path.abspath(self._file))
        if directory not in self._watched:
            self._watch_one(directory, is_recursive=True)
            self._log.info(f"--reload: watching {directory} for changes")
        is_below = any(f"{folder}/".startswith(f"{one.rstrip('/')}/") for one in self._watched)
        if not is_below:
            self._watch_one(folder, is_recursive=False)

    def feed_watchdog(self) -> None:
        """Tell the service manager that the service lives, also while no child runs."""
        seconds = self._notifier.watchdog_seconds / 2

        def run() -> None:
            while not self._stopped.wait(seconds):
                self._notifier.feed_watchdog()

        if seconds:
            threading.Thread(target=run, name="serve-zig-watchdog", daemon=True).start()

    def _watch_one(self, folder: str, *, is_recursive: bool) -> None:
        """Return when the watch has begun: a change after that is not missed."""
        self._watched.add(folder)
        stop = _StopOfWatch(self._stopped)

        def run() -> None:
            try:
                # Changes that follow each other within 50 ms are one, at most 1.6 s of them.
                for changes in self._watch(
                    folder,
                    watch_filter=self._filter(),
                    stop_event=stop,
                    recursive=is_recursive,
                    raise_interrupt=False,
                    ignore_permission_denied=True,
                ):
                    self._events.put(("change", sorted({path for _, path in changes})))
            except Exception as error:
                self._events.put(("failure", f"{folder} cannot be watched: {error}"))
            finally:
                stop.was_asked.set()

        threading.Thread(target=run, name="serve-zig-watch", daemon=True).start()
        stop.was_asked.wait(_WATCH_SECONDS)

    def _filter(self) -> Callable[[object, str], bool]:
        from watchfiles import DefaultFilter

        usual = DefaultFilter()
        config = os.path.abspath(self._file)

        def is_source(change: object, path: str) -> bool:
            # By the real path too: what is watched may be named through a link.
            if os.path.abspath(path) == config or os.path.realpath(path) == os.path.realpath(
                config
            ):
                return True
            return path.endswith(_SOURCES) and usual(change, path)  # type: ignore[arg-type]

        return is_source

    def run(self) -> int:
        """Act on events until a signal ends it, and return the exit status."""
        self._start()
        # Clients that come from here on are answered: their connections wait for the child.
        self._notifier.ready(f"--reload: watching {self._config.text('app.directory')}")
        while True:
            try:
                kind, value = self._events.get(timeout=self._timeout())
            except queue.Empty:
                self._lose_patience()
                continue
            if kind == "signal":
                assert isinstance(value, int)
                if self._on_signal(signal.Signals(value)):
                    return EXIT_DRAINED
            elif kind == "change":
                assert isinstance(value, list)
                self._on_change(value)
            elif kind == "failure":
                raise LauncherError(f"--reload: {value}; WATCHFILES_FORCE_POLLING=1 may help")
            elif value is self._child:
                status = self._on_end()
                if status is not None:
                    return status

    def _timeout(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _on_signal(self, number: signal.Signals) -> bool:
        """Pass the signal on; return True where there is no child to pass it to."""
        if number in IGNORED:
            self._log.info(ignore(number))
            return False
        is_stop = number in STOPS
        if is_stop:
            # As long again for app.shutdown.
            self._notifier.stopping("draining", 2 * self._config.seconds("timeouts.drain"))
        elif number == signal.SIGHUP:
            self._notifier.reloading()
            self._notifier.ready_again()
        if self._child is None:
            return is_stop
        # A second one ends the server at once, as it does without --reload.
        self._child.send_signal(signal.SIGTERM if is_stop else number)
        if is_stop:
            self._state = "ending"
            self._deadline = None
        return False

    def _on_change(self, paths: list[str]) -> None:
        base = self._config.text("app.directory")
        names = [os.path.relpath(path, base) for path in paths]
        more = f" and {len(names) - _SHOWN_MAX} more" if len(names) > _SHOWN_MAX else ""
        if self._state == "serving" and self._child is not None:
            self._log.info(f"--reload: {', '.join(names[:_SHOWN_MAX])}{more} changed; restarting")
            self._state = "replacing"
            child = self._child
            child.terminate()
            seconds = min(self._config.seconds("timeouts.drain"), _DRAIN_SECONDS_MAX)
            self._deadline = time.monotonic() + seconds
            self._impatience = [child.terminate, child.kill]
        elif self._state == "waiting":
            self._log.info(f"--reload: {', '.join(names[:_SHOWN_MAX])}{more} changed; starting")
            self._start()

    def _lose_patience(self) -> None:
        """Tell the server that is replaced to end at once, and then end it."""
        self._deadline = None
        if self._impatience:
            self._impatience.pop(0)()
            self._deadline = time.monotonic() + _LIFE_SECONDS_MIN

    def _on_end(self) -> int | None:
        """Follow the child's end; return the exit status where it is the supervisor's too."""
        child, self._child = self._child, None
        assert child is not None
        os.close(self._lifeline)
        state, self._state = self._state, "waiting"
        self._deadline = None
        status = child.returncode
        if state == "ending":
            return status if status >= 0 else EXIT_FAILED
        has_lived = time.monotonic() - self._started >= _LIFE_SECONDS_MIN
        if state == "replacing" or (status == EXIT_DRAINED and has_lived):
            self._start()
            return None
        what = f"status {status}" if status >= 0 else signal.Signals(-status).name
        self._log.error(f"--reload: the server has ended with {what}; waiting for a change")
        return None

    # The child.

    def _start(self) -> None:
        try:
            self._read_config()
        except LauncherError as error:
            stderr.tell(error.report())
            self._log.error("--reload: the config is wrong; waiting for a change")
            return
        read_end, self._lifeline = os.pipe()
        binds = strings([f"fd://{descriptor}" for descriptor in self._descriptors])
        overrides = [*self._overrides, f"listen.bind={binds}", *_HURRY]
        try:
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _CHILD,
                    json.dumps(sys.path),
                    str(read_end),
                    *("-c", self._file),
                    *(word for override in overrides for word in ("--set", override)),
                ],
                pass_fds=[*self._descriptors, read_end],
            )
        finally:
            os.close(read_end)
        self._child = child
        self._state = "serving"
        self._started = time.monotonic()

        def wait() -> None:
            child.wait()
            self._events.put(("end", child))

        threading.Thread(target=wait, name="serve-zig-wait", daemon=True).start()

    def _read_config(self) -> None:
        """Read the config again, and open other listeners if it names others."""
        config = load(self._file, self._overrides)
        names = ("listen.bind", "listen.unix_mode", "listen.backlog")
        before, self._config = self._config, config
        if not self._descriptors or any(before.value(name) != config.value(name) for name in names):
            self._close_listeners()
            self.open_listeners(config)
        self.watch()
