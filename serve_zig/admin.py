"""The admin listener as the launcher sees it: opened first, and helped by one thread.

The core answers on a thread without Python. What needs the GIL, the threads' stacks, is told by a
helper, which waits for the core without holding it.
"""

from __future__ import annotations

import sys
import threading

from serve_zig import stderr
from serve_zig.addresses import TcpAddress, parse_address
from serve_zig.application_traceback import describe_exception
from serve_zig.errors import EXIT_APPLICATION, ApplicationError, LauncherError
from serve_zig.listeners import Listener, close_listeners, open_listeners
from serve_zig.process_end import end_now
from serve_zig.shortage import ANY, shortage_of_threads
from serve_zig.stacks import stack_of, threads_as_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from serve_zig._core import Admin as CoreAdmin
    from serve_zig._core import Server
    from serve_zig.config import Config
    from serve_zig.diagnosis import Diagnosis
    from serve_zig.notify import Notifier

# Scrapers and probes; the core allows 64 connections.
_BACKLOG = 64

_HELPER_SECONDS = 1.0

_EVERY_INTERFACE = ("0.0.0.0", "[::]")


class Admin:
    """The admin listener of one process, whose thread also feeds the service manager's watchdog.

    Without a key and a watchdog that need it, nothing at all.
    """

    def __init__(self, config: Config, notifier: Notifier) -> None:
        self._config = config
        self._notifier = notifier
        self._listeners: list[Listener] = []
        self._core: CoreAdmin | None = None
        self._helper: threading.Thread | None = None
        self._diagnosis: Diagnosis | None = None
        self.urls: list[str] = []

    def open(self) -> None:
        """Bind and answer from here on; raise ListenerError."""
        config = self._config
        bind = config.text("admin.bind")
        startup_seconds = config.seconds("app.startup_timeout")
        watchdog_seconds = self._notifier.watchdog_seconds
        if not (bind or config.text("admin.in_band") or startup_seconds or watchdog_seconds):
            return
        # Imported here, because a start without an admin listener does not need it.
        import json

        from serve_zig._core import Admin as CoreAdmin

        if bind:
            mode = config.integer("admin.unix_mode")
            self._listeners = open_listeners([bind], mode, config.place("admin.bind"))
        for listener in self._listeners:
            listener.listen(_BACKLOG)
        hosts = [*config.strings("admin.hosts"), *(one.host for one in self._listeners)]
        address = parse_address(bind) if bind else None
        if isinstance(address, TcpAddress):
            # Where it is a name, that is an address too.
            hosts.append(f"[{address.host}]" if ":" in address.host else address.host)
        options: dict[str, int | str] = {
            "hosts": "\n".join(one for one in hosts if one),
            "any_address": any(one.host in _EVERY_INTERFACE for one in self._listeners),
            "livez_stall_ms": max(1, round(config.seconds("admin.livez_stall") * 1000)),
            "startup_timeout_ms": round(startup_seconds * 1000),
            "watchdog_fd": self._notifier.watchdog_descriptor(),
            # Half of the manager's patience, as sd_watchdog_enabled(3) recommends.
            "watchdog_period_ms": max(1, round(watchdog_seconds * 500)) if watchdog_seconds else 0,
            "config": json.dumps(config.to_tables()),
            "python": ".".join(map(str, sys.version_info[:3])),
        }
        self.urls = [listener.url for listener in self._listeners]
        descriptors = [one.hand_over() for one in self._listeners]
        try:
            self._core = CoreAdmin(options, descriptors)
            helper = threading.Thread(target=self._help, name="serve-zig-admin", daemon=True)
            helper.start()
            self._helper = helper
        except (OSError, RuntimeError, MemoryError) as error:
            raise LauncherError(
                f"the admin listener cannot start: {type(error).__name__}: {error}; "
                f"{shortage_of_threads() or ANY}"
            ) from None

    def stage(self, name: str) -> None:
        """Say where the process is: importing, startup, starting, serving or shutdown."""
        if self._core is not None:
            self._core.stage(name)

    def serve(self, server: Server, diagnosis: Diagnosis) -> None:
        """Answer about this server; from here on it is ready."""
        self._diagnosis = diagnosis
        if self._core is not None:
            self._core.serve(server)

    def close(self) -> None:
        """Close the listener and let the helper go."""
        close_listeners(self._listeners)
        core, self._core = self._core, None
        if core is None:
            return
        core.stop()
        core.dismiss()
        if self._helper is not None:
            self._helper.join(_HELPER_SECONDS)

    def _help(self) -> None:
        core = self._core
        assert core is not None
        while True:
            match core.wait():
                case "stop":
                    return
                case "stacks":
                    core.answer(self._stacks())
                case "late":
                    self._give_up_start()

    def _stacks(self) -> bytes:
        """Never raises: with the helper gone, the process would look stuck."""
        try:
            diagnosis = self._diagnosis
            return threads_as_json(diagnosis.by_thread if diagnosis else dict)
        except BaseException as error:
            import json

            return json.dumps({"error": describe_exception(error)}).encode() + b"\n"

    def _give_up_start(self) -> None:
        config = self._config
        seconds = config.seconds("app.startup_timeout")
        stack = stack_of(threading.main_thread().ident or 0)
        error = ApplicationError(
            f"{config.place('app.startup_timeout')}: import and startup take longer than "
            f"{seconds:g} s; mend what hangs, or allow more",
            detail=f"The main thread is here (most recent call last):\n{stack}" if stack else "",
        )
        stderr.tell(error.report())
        end_now(EXIT_APPLICATION)
