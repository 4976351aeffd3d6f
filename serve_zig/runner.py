"""A server's life: listeners, application, workers, signals, drain; and the exit status.

The main thread waits in ``Server.wait`` and acts on signals. The workers are daemon threads: one
that is stuck in the application must not keep the process from ending.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

from serve_zig import cgroup, stderr
from serve_zig.activation import passed_sockets
from serve_zig.admin import Admin
from serve_zig.application import check_threads, load
from serve_zig.application_traceback import describe_exception
from serve_zig.config import ACCESS_WORDS
from serve_zig.descriptors import fit_connections
from serve_zig.diagnosis import Diagnosis, dump_threads_early
from serve_zig.errors import (
    EXIT_DRAIN_TIMEOUT,
    EXIT_DRAINED,
    EXIT_FAILED,
    ApplicationError,
    LauncherError,
    StartInterruptedError,
)
from serve_zig.forks import Forks
from serve_zig.hooks import Hook
from serve_zig.kinds import MEBIBYTE, size_text
from serve_zig.listeners import Listener, close_listeners, open_listeners
from serve_zig.logging import LEVELS, Log, traceback_of
from serve_zig.memory import resident_bytes
from serve_zig.notices import level_of, text_of
from serve_zig.notify import Notifier
from serve_zig.process_end import end_now, warn_with
from serve_zig.progress import announced
from serve_zig.shortage import ANY, shortage_of_threads
from serve_zig.signals import Signals
from serve_zig.stacks import stack_of
from serve_zig.static_tables import core_tables
from serve_zig.target import parse_target
from serve_zig.threads import names_of_waited_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from serve_zig._core import Server
    from serve_zig.application import Application
    from serve_zig.config import Config
    from serve_zig.telemetry import Telemetry

    Options = dict[str, int | bool | str | list[tuple[str, str, str, str, bool]]]

# A signal ends the wait before that.
_WAIT_MS = 60_000
# For how long where what was to be done could not be done.
_FAILED_WAIT_MS = 100
# Exceptions of the application's signal handlers that wait to be logged.
_RAISED_MAX = 10

# How often the service manager is told how much a drain has left.
_STATUS_PERIOD_MS = 1000

# How often resident memory is looked at, where it has a limit.
_MEMORY_PERIOD_MS = 1000

# How much longer than the core the launcher waits for the end of a drain: whoever polls may be
# stuck in the application.
_DRAIN_GRACE_SECONDS = 0.25

# How long workers may take to return once the server has stopped, and where some are known to be
# stuck.
_JOIN_SECONDS = 1.0
_JOIN_SECONDS_HURRIED = 0.1

_OPTIONS = {
    "threads": "concurrency.threads",
    "queue": "concurrency.queue",
    "request_line_bytes": "limits.request_line",
    "head_bytes": "limits.head",
    "fields": "limits.fields",
    "body_bytes": "limits.body",
    "body_memory_bytes": "limits.body_memory",
    "requests_per_connection": "limits.requests_per_connection",
    "response_memory_bytes": "limits.response_memory",
    "buffer_memory_bytes": "limits.buffer_memory",
}
# Times where 0 means none.
_OPTIONS_MS_OR_NONE = {"request_timeout_ms": "timeouts.request"}
_REQUEST_ACTIONS = ("log", "answer", "raise")
_OPTIONS_MS = {
    "queue_timeout_ms": "concurrency.queue_timeout",
    "head_timeout_ms": "timeouts.head",
    "body_timeout_ms": "timeouts.body",
    "keep_alive_timeout_ms": "timeouts.keep_alive",
    "write_timeout_ms": "timeouts.write",
    "drain_timeout_ms": "timeouts.drain",
}


def serve(config: Config) -> int:
    """Serve until a signal ends it, and return the exit status.

    Raises LauncherError where the server does not come to serve. Ends the process itself where a
    worker cannot be waited for.
    """
    log = Log(config.text("log.level"), config.text("log.format"))
    warn_with(log.warning)
    signals = Signals()
    notifier = Notifier(os.environ, log.warning)
    listeners: list[Listener] = []
    admin = Admin(config, notifier)
    shutdown = Hook(config, "app.shutdown")
    try:
        signals.install(lambda: dump_threads_early(log), log.info)
        server_type = core_server()
        forks = Forks(signals)
        connections = _fit_connections(config, log)
        _check_access_log(config)
        admin.open()
        listeners = open_listeners(
            config.strings("listen.bind"),
            config.integer("listen.unix_mode"),
            config.place("listen.bind"),
        )
        forks.listeners = listeners
        for text in config.warnings:
            log.warning(text)
        _warn_of_sockets(log)
        telemetry = open_telemetry(config, log)
        application = _start_application(config, shutdown, admin, notifier, log)
        if telemetry is not None:
            # An application may have set a provider of spans of its own until here.
            application = telemetry.wrap(application)
        admin.stage("starting")
        for listener in listeners:
            listener.listen(config.integer("listen.backlog"))
        options = core_options(config, connections)
        options["socket_memory_bytes"] = socket_memory()
        # From here the descriptors are the core's, which closes them when it drains.
        sockets = [
            (one.hand_over(), one.server_name, one.server_port, one.is_shared) for one in listeners
        ]
        try:
            server = server_type(options, sockets, application, log.report)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            raise LauncherError(f"the core cannot start: {_reason(error)}") from None
        log.hand_over(server)
        sys.setswitchinterval(config.seconds("concurrency.switch_interval"))
        _take_back_signals(signals, log)
        signals.serving(server.wakeup_fd(), server.announce_drain)
        workers = Workers(server, log)
        workers.start()
        # No worker begins before `run.wait`: requests may hold the GIL, or need all the memory.
        _say_hello(config, listeners, admin, log)
        _say_surroundings(config, log)
        raises = config.text("timeouts.request_action") == "raise"
        diagnosis = Diagnosis(server, workers.threads, log, raises)
        admin.serve(server, diagnosis)
        limit = options["requests_limit"]
        assert isinstance(limit, int)
        run = _Run(server, workers, diagnosis, listeners, signals, notifier, log, config, limit)
        notifier.ready(f"serving {config.text('app.target')} on {_urls(listeners)}")
        status = run.wait()
        signals.closing()
        if telemetry is not None:
            # The collector may be slow.
            signals.ending()
            telemetry.close()
            signals.closing()
    except (StartInterruptedError, LauncherError) as error:
        # One that comes from here on is too late to be what broke the start off.
        stops = [*signals.stops]
        signals.closing()
        log.take_back()
        admin.close()
        # An import that a signal broke off may fail in the application's own way.
        if stops:
            _end_with(signals)
            notifier.stopping("stopped before it served", 0.0)
            log.info(f"{stops[0]}: stopped before the server served")
            return EXIT_DRAINED
        if isinstance(error, LauncherError):
            signals.failed(error.exit_status)
            notifier.status(f"failed: {error.problems[0] if error.problems else error}")
        raise
    finally:
        close_listeners(listeners)
    have_ended = workers.join(_JOIN_SECONDS if status == EXIT_DRAINED else _JOIN_SECONDS_HURRIED)
    if status != EXIT_FAILED:
        admin.stage("shutdown")
        if shutdown.is_there:
            notifier.status(f"running {shutdown}")
            # A second signal ends it.
            signals.ending()
            status = _shut_down(shutdown, status, config.seconds("timeouts.drain"), log)
            signals.closing()
    log.take_back()
    if not have_ended:
        end_now(status)
    admin.close()
    notifier.close()
    _end_with(signals)
    return status


def _end_with(signals: Signals) -> None:
    """Let a second signal end the process at once where it may not end by itself."""
    if names_of_waited_for():
        signals.ending()
    else:
        signals.closing()


def _start_application(
    config: Config, shutdown: Hook, admin: Admin, notifier: Notifier, log: Log
) -> Application:
    """Import the application and its hooks, and run ``app.startup``."""
    # Within its own limit the start shall not be too long for the service manager.
    limit = config.seconds("app.startup_timeout")
    target = parse_target(config.text("app.target"))
    startup = Hook(config, "app.startup")

    def step(what: str) -> AbstractContextManager[None]:
        notifier.starting(what, limit)
        return announced(what, log.info)

    with step(f"importing {target.text}"):
        application = load(target, config.text("app.directory"), config.place("app.target"))
    for hook in (startup, shutdown):
        if hook.is_there:
            with step(f"importing {hook}"):
                hook.load()
    admin.stage("startup")
    if startup.is_there:
        with step(f"running {startup}"):
            startup.run()
    # The hooks may have done it, too.
    check_threads(config.place("app.startup" if startup.is_there else "app.target"))
    notifier.starting("starting the workers")
    return application


def _warn_of_sockets(log: Log) -> None:
    names = passed_sockets().left()
    if names:
        log.warning(
            f"systemd has passed sockets that no address of the config names ({', '.join(names)}); "
            'nobody answers there: add "fd://systemd" to listen.bind'
        )


def _reason(error: Exception) -> str:
    what = f"{type(error).__name__}: {error}".removesuffix(": ")
    hint = "" if isinstance(error, ValueError) else shortage_of_threads()
    return f"{what}; {hint}" if hint else what


def _urls(listeners: list[Listener]) -> str:
    return ", ".join(one.url for one in listeners)


def _take_back_signals(signals: Signals, log: Log) -> None:
    replaced = signals.take_back()
    if replaced:
        log.warning(
            f"the application has replaced the handling of {', '.join(replaced)}, which the server "
            "has taken back; app.shutdown names what is to run at the end"
        )


def _say_hello(config: Config, listeners: list[Listener], admin: Admin, log: Log) -> None:
    version = build_information()["version"]
    log.info(
        f"serve-zig {version} (pid {os.getpid()}) serves {config.text('app.target')} on "
        f"{_urls(listeners)} with {config.integer('concurrency.threads')} threads"
    )
    if admin.urls:
        log.info(f"the admin listener is on {', '.join(admin.urls)}")


def _shut_down(shutdown: Hook, status: int, seconds: float, log: Log) -> int:
    """Run app.shutdown, which may take as long as a drain, and return the exit status."""
    done = threading.Event()

    def give_up() -> None:
        if done.wait(seconds):
            return
        stack = stack_of(threading.main_thread().ident or 0)
        log.error(f"app.shutdown takes longer than {seconds:g} s; the process ends now", stack)
        log.take_back()
        end_now(EXIT_DRAIN_TIMEOUT)

    # Without a thread to spare the service manager's patience is the limit.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=give_up, name="serve-zig-shutdown", daemon=True).start()
    try:
        with announced(f"running {shutdown}", log.info):
            shutdown.run()
    except ApplicationError as error:
        stderr.tell(error.report())
        return status or error.exit_status
    finally:
        done.set()
    return status


def _say_surroundings(config: Config, log: Log) -> None:
    """Log what explains later what is seen: the container's limits, and where uploads go."""
    limits = cgroup.read()
    log.info(f"cgroup: {limits}")
    if limits.hint():
        log.info(limits.hint())
    directory = temporary_directory()
    if not os.access(directory, os.W_OK | os.X_OK):
        body_memory = size_text(config.integer("limits.body_memory"))
        log.warning(
            f"no temporary directory can be written to ({directory} and others): a request body "
            f"past limits.body_memory ({body_memory}) is answered 500; mount one, or set TMPDIR"
        )


def open_telemetry(config: Config, log: Log) -> Telemetry | None:
    """Return what makes spans of requests; None, without importing it, where none are wanted."""
    if not config.text("telemetry.otlp_endpoint"):
        return None
    from serve_zig.telemetry import Telemetry

    return Telemetry(config, log)


def core_server() -> type[Server]:
    """Return the extension module's Server; raise LauncherError where the module is missing."""
    try:
        from serve_zig._core import Server, load_unwinder
    except ImportError as error:
        raise LauncherError(
            f"the extension module serve_zig._core cannot be loaded ({error}); install serve-zig "
            "for this platform, or build it: pip install -e ."
        ) from None
    # Before anything starts a thread, or takes the last descriptor.
    load_unwinder()
    return Server


def build_information() -> dict[str, str]:
    """Return version, zig, optimize and target; raise LauncherError as ``core_server`` does."""
    core_server()
    from serve_zig._core import build_info

    return build_info()


def core_options(config: Config, connections: int) -> Options:
    """Return the config as the core takes it: times in milliseconds, sizes in bytes."""
    options: Options = {name: config.integer(path) for name, path in _OPTIONS.items()}
    for name, path in _OPTIONS_MS.items():
        options[name] = max(1, round(config.seconds(path) * 1000))
    for name, path in _OPTIONS_MS_OR_NONE.items():
        seconds = config.seconds(path)
        options[name] = max(1, round(seconds * 1000)) if seconds else 0
    options["request_action"] = _REQUEST_ACTIONS.index(config.text("timeouts.request_action"))
    options["connections"] = connections
    options["requests_limit"] = requests_limit(
        config.integer("limits.requests"), config.integer("limits.requests_jitter")
    )
    options["in_band"] = config.text("admin.in_band")
    options["proxy_trusted"] = ",".join(config.strings("proxy.trusted"))
    options["proxy_headers"] = config.text("proxy.headers")
    options["proxy_protocol"] = config.boolean("proxy.protocol")
    options["temporary_directory"] = temporary_directory()
    access = config.text("log.access")
    options["access_log"] = "" if access == "off" else access
    options["access_exclude"] = "\n".join(config.strings("log.access_exclude"))
    options["log_json"] = config.text("log.format") == "json"
    options["log_level"] = LEVELS.index(config.text("log.level"))
    slow_request = config.seconds("log.slow_request")
    options["slow_request_ms"] = max(1, round(slow_request * 1000)) if slow_request else 0
    options["server_timing"] = config.boolean("log.server_timing")
    options["phases"] = bool(config.text("telemetry.otlp_endpoint"))
    options["python_version"] = ".".join(map(str, sys.version_info[:3]))
    options["static"] = core_tables(config)
    return options


def socket_memory() -> int:
    """Return how much of the kernel's memory stalled clients may hold: a quarter of all there is.

    Of the container's limit where there is one, which counts what sockets hold.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    container = cgroup.read().memory
    if container is not None:
        limits.append(container)
    return min(limits) // 4


def requests_limit(requests: int, jitter: int) -> int:
    """Return after how many requests the server drains; 0 for never."""
    # Not the module random, which takes as long to import as the rest of the launcher.
    spread = int.from_bytes(os.urandom(8), "little") % (jitter + 1)
    return requests + spread if requests else 0


def temporary_directory() -> str:
    """Return where a request body past ``limits.body_memory`` goes.

    The rule of the standard library's tempfile, without making a file to try it: nothing is
    written before a request needs it, and a read-only root must do until then.
    """
    candidates = [os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    for candidate in (*candidates, "/tmp", "/var/tmp", "/usr/tmp"):
        if os.path.isdir(candidate) and os.access(candidate, os.W_OK | os.X_OK):
            return os.path.abspath(candidate)
    return "/tmp"


class Workers:
    """The threads that run ``Server.run_worker``. One that ends by itself ends the server."""

    def __init__(self, server: Server, log: Log) -> None:
        self._server = server
        self._log = log
        self._is_ending = False
        self.has_failed = False
        self.threads = [
            threading.Thread(
                target=self._work, args=(number,), name=f"serve-zig-{number}", daemon=True
            )
            for number in range(server.worker_count())
        ]

    def start(self) -> None:
        """Start every thread; raise LauncherError where the system refuses one."""
        for number, thread in enumerate(self.threads):
            try:
                thread.start()
            except RuntimeError:
                # Those that have started return.
                self.ending()
                self._server.stop()
                raise LauncherError(
                    f"the system allows only {number} of {len(self.threads)} threads; lower "
                    f"concurrency.threads, or raise the limit: {shortage_of_threads() or ANY}"
                ) from None

    def ending(self) -> None:
        """From here on a worker is expected to return."""
        self._is_ending = True

    def join(self, seconds: float) -> bool:
        """Wait at most so long, in all, and return whether every thread has ended."""
        deadline = time.monotonic() + seconds
        for thread in self.threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)

    def _work(self, number: int) -> None:
        why = "it returned"
        try:
            self._server.run_worker(number)
        except BaseException as error:
            # The application may have set one for this thread, which comes whenever it likes.
            why = describe_exception(error)
        if not self._is_ending:
            self._fail(number, why)

    def _fail(self, number: int, why: str) -> None:
        self.has_failed = True
        self._log.error(f"the worker serve-zig-{number} has ended ({why}); the server stops")
        self._server.stop()


class _Run:
    """From the first request to the exit status."""

    def __init__(
        self,
        server: Server,
        workers: Workers,
        diagnosis: Diagnosis,
        listeners: list[Listener],
        signals: Signals,
        notifier: Notifier,
        log: Log,
        config: Config,
        requests_limit: int,
    ) -> None:
        self._server = server
        self._workers = workers
        self._diagnosis = diagnosis
        self._listeners = listeners
        self._signals = signals
        self._notifier = notifier
        self._log = log
        self._drain_seconds = config.seconds("timeouts.drain")
        self._delay_seconds = config.seconds("timeouts.drain_delay")
        self._requests_limit = requests_limit
        self._memory_limit = config.integer("limits.memory")
        self._drains_at: float | None = None
        self._deadline: float | None = None
        self._raised: list[BaseException] = []
        self._asked_by = ""

    def wait(self) -> int:
        """Wait for the end, acting on signals and limits, and return the exit status."""
        while True:
            timeout_ms = _FAILED_WAIT_MS
            try:
                # Before the first wait for signals that came during the start.
                self._tell_raised()
                status = self._act()
                if status is not None:
                    return status
                timeout_ms = self._timeout_ms()
            except BaseException as error:
                self._note_raised(error)
            try:
                if self._server.wait(timeout_ms):
                    break
            except BaseException as error:
                self._note_raised(error)
        if self._workers.has_failed:
            return EXIT_FAILED
        if self._deadline is None:
            self._log.error("the server has stopped by itself")
            return EXIT_FAILED
        if any(self._load().values()):
            return self._time_out()
        self._log.info("drained; the server ends")
        return EXIT_DRAINED

    def _note_raised(self, error: BaseException) -> None:
        """Take note of what came out of a handler of the application for some other signal.

        Those run in this thread. Not so a MemoryError: the application took all there is, and may
        give it back; what is to be done waits.
        """
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            self._asked_by = type(error).__name__
        elif not isinstance(error, MemoryError) and len(self._raised) < _RAISED_MAX:
            self._raised.append(error)

    def _tell_raised(self) -> None:
        while self._raised:
            self._log.error(
                "a signal handler of the application raised; the server goes on",
                traceback_of(self._raised[0]),
            )
            self._raised.pop(0)

    def _act(self) -> int | None:
        """Do what is due, and return the exit status where that is the end."""
        self._tell_notices()
        if self._signals.take_reopening():
            self._reopen_logs()
        for line in self._signals.take_ignored():
            self._log.info(line)
        self._diagnose()
        stops = self._signals.stops
        if len(stops) > 1:
            self._log.warning(f"{stops[1]}: the second signal; the server stops at once")
            return self._stop(EXIT_FAILED)
        if self._drains_at is None:
            why = stops[0] if stops else self._asked_by or self._limit_passed()
            if why:
                self._leave(why)
        if self._drains_at is not None and self._deadline is None:
            if time.monotonic() >= self._drains_at:
                self._drain()
        elif self._deadline is not None and time.monotonic() >= self._deadline:
            return self._time_out()
        if self._drains_at is not None:
            self._tell_manager()
        return None

    def _reopen_logs(self) -> None:
        is_serving = self._drains_at is None
        if is_serving:
            self._notifier.reloading()
        self._server.reopen_logs()
        self._log.info("SIGHUP: log files are opened anew")
        if is_serving:
            self._notifier.ready_again()

    def _tell_manager(self) -> None:
        """Tell how much the drain has left."""
        if not self._notifier.is_on:
            return
        left = len(self._server.requests())
        self._notifier.status(f"draining, {left} request{'' if left == 1 else 's'} left")

    def _tell_notices(self) -> None:
        while (notice := self._server.take_notice()) is not None:
            self._log.record(level_of(notice[0]), text_of(*notice))

    def _diagnose(self) -> None:
        if self._signals.take_dump():
            self._try(lambda: self._diagnosis.dump("SIGUSR1"))
        self._try(self._diagnosis.act_on_overdue)

    def _try(self, tell: Callable[[], None]) -> None:
        """What cannot be told must not end what it speaks of, nor change the exit status."""
        try:
            tell()
        except BaseException as error:
            self._log.error(f"diagnosis: {describe_exception(error)}")

    def _timeout_ms(self) -> int:
        until = self._drains_at if self._deadline is None else self._deadline
        if until is not None:
            left_ms = round((until - time.monotonic()) * 1000)
            longest_ms = _STATUS_PERIOD_MS if self._notifier.is_on else _WAIT_MS
            return max(1, min(longest_ms, left_ms))
        return _MEMORY_PERIOD_MS if self._memory_limit else _WAIT_MS

    def _limit_passed(self) -> str:
        """Return which limit on the whole process has been passed, for the log; else nothing."""
        if self._requests_limit and self._server.status()["requests"] >= self._requests_limit:
            return f"limits.requests: {self._requests_limit} requests have been answered"
        if self._memory_limit:
            resident = resident_bytes()
            if resident > self._memory_limit:
                return (
                    f"limits.memory: {resident / MEBIBYTE:.1f} MiB are resident, which is more "
                    f"than {self._memory_limit / MEBIBYTE:.1f} MiB"
                )
        return ""

    def _leave(self, why: str) -> None:
        """Let /readyz fail, and drain when balancers have had time to hear of it."""
        self._server.announce_drain()
        self._drains_at = time.monotonic() + self._delay_seconds
        # For the drain, and as long again for app.shutdown.
        self._notifier.stopping("draining", self._delay_seconds + 2 * self._drain_seconds)
        after = f"in {self._delay_seconds:g} s, " if self._delay_seconds else ""
        self._log.info(
            f"{why}: draining {after}for at most {self._drain_seconds:g} s ({self._load_text()})"
        )

    def _drain(self) -> None:
        deadline = time.monotonic() + self._drain_seconds + _DRAIN_GRACE_SECONDS
        self._workers.ending()
        for listener in self._listeners:
            listener.remove_file()
        self._server.drain()
        self._deadline = deadline

    def _time_out(self) -> int:
        """Say what is still running after the drain, and give it up."""
        self._log.error(
            f"the drain timed out after {self._drain_seconds:g} s ({self._load_text()})"
        )
        self._try(self._diagnosis.report_stuck)
        return self._stop(EXIT_DRAIN_TIMEOUT)

    def _stop(self, status: int) -> int:
        self._workers.ending()
        self._server.stop()
        return status

    def _load(self) -> dict[str, int]:
        status = self._server.status()
        return {name: status[name] for name in ("connections", "running", "queued")}

    def _load_text(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self._load().items())


def _fit_connections(config: Config, log: Log) -> int:
    allowed = config.integer("limits.connections")
    connections = fit_connections(allowed)
    if connections < allowed:
        log.warning(
            f"limits.connections is cut from {allowed} to {connections}: this process may open no "
            "more files (ulimit -n)"
        )
    return connections


def _check_access_log(config: Config) -> None:
    path = config.text("log.access")
    if path in ACCESS_WORDS:
        return
    # As the core opens it: a FIFO without a reader is an error, and waits for nobody.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        os.close(os.open(path, flags, 0o644))
    except OSError as error:
        raise LauncherError(
            f"{config.place('log.access')}: {path} cannot be opened "
            f"({os.strerror(error.errno or 0)}); name a file that this user may write, "
            'or "stdout"'
        ) from None
