"""What the options of uWSGI are in serve.toml, or why they have no counterpart.

uWSGI has more than seven hundred options. The ones in use have a rule, a method of ``_Migration``,
or an explanation, by name or by the beginning of it; what is left over is named as unknown.
"""

from __future__ import annotations

import os

from serve_zig.gunicorn_settings import rounded_head
from serve_zig.migration import Document, Template, Unknown, address, shown
from serve_zig.target import TargetError, parse_target
from serve_zig.uwsgi_file import LOGIC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from serve_zig.uwsgi_file import Options

ALIASES = {
    "check-cache": "check-static",
    "chmod": "chmod-socket",
    "cheap": "cheaper",
    "declare-option2": "declare-option",
    "evil-reload-on-rss": "reload-on-rss",
    "http11-socket": "http-socket",
    "pp": "pythonpath",
    "pyhome": "home",
    "python-path": "pythonpath",
    "uwsgi-socket": "socket",
    "venv": "home",
    "virtualenv": "home",
    "workers": "processes",
    "worker-reload-mercy": "reload-mercy",
    "wsgi": "module",
}

_SINGLE = "one process, one interpreter, one application"
_CONTAINER = "the container's own: USER in the Dockerfile, runAsUser in Kubernetes"
_FOREGROUND = "serve-zig stays in the foreground, as containers and systemd want it"
_TLS = "TLS ends before serve-zig, at the ingress, load balancer or a sidecar"
_REPLICAS = "the number of processes is the orchestrator's: replicas and an autoscaler"
_TASKS = "work beside requests is a task queue's (Celery, RQ, Dramatiq) or a container's of its own"
_ROUTES = "routing and rewriting is the ingress's, or a WSGI middleware's"
_CACHE = "use a cache of Python's, or Redis; one process has one memory"
_HOOKS = "app.startup and app.shutdown run a function after the import and after the drain"
_LOG = "the log goes to stderr; redirect or collect that"
_LOG_CHOICE = (
    "the access log has every request; log.access_exclude leaves paths out, log.slow_request names "
    "the slow ones"
)
_HTTP = "the server's own HTTP/1.1 does what is right without a setting"
_TOUCH = "nothing is reloaded in a running process; the orchestrator replaces it"
_RELOAD = "a switch of the command line: serve-zig --reload, for development"
_LOGIC = "not followed: options that it decides on are named here and not set"
_PLUGIN = "nothing to load: Python is built in"

EXPLAINED: dict[str, str] = {
    "master": "there is one process; the orchestrator starts another where it ends",
    "die-on-term": "always so: SIGTERM drains and ends",
    "need-app": "always so: exit status 3 where the application cannot be imported",
    "vacuum": "always so: the file of a unix socket is removed at the end",
    "single-interpreter": _SINGLE,
    "enable-threads": "always so",
    "lazy-apps": "always so: there is no fork",
    "lazy": "always so: there is no fork",
    "no-orphans": _SINGLE,
    "thunder-lock": "one process accepts",
    "strict": "always so: an unknown key is an error",
    "home": "install serve-zig into that environment and start it from there",
    "pythonpath": "set PYTHONPATH in the environment; app.directory alone comes before it",
    "pidfile": _FOREGROUND,
    "pidfile2": _FOREGROUND,
    "safe-pidfile": _FOREGROUND,
    "daemonize": f"{_FOREGROUND}; the log goes to stderr",
    "daemonize2": f"{_FOREGROUND}; the log goes to stderr",
    "uid": _CONTAINER,
    "gid": _CONTAINER,
    "chown-socket": "the file belongs to the user of the process; listen.unix_mode opens it",
    "umask": "listen.unix_mode has the permissions of a unix socket",
    "chroot": _CONTAINER,
    "procname": "the process keeps its name",
    "procname-prefix": "the process keeps its name",
    "procname-prefix-spaced": "the process keeps its name",
    "auto-procname": "the process keeps its name",
    "max-worker-lifetime": "limits.requests and limits.memory end the process; for an age, let the "
    "orchestrator do it (kubectl rollout restart in a CronJob)",
    "min-worker-lifetime": _REPLICAS,
    "max-requests-delta": "limits.requests_jitter spreads the restarts, by chance",
    "exit-on-reload": _TOUCH,
    "py-autoreload": _RELOAD,
    "python-autoreload": _RELOAD,
    "ignore-sigpipe": "a client that goes away is no error",
    "ignore-write-errors": "a client that goes away is no error",
    "disable-write-exception": "a client that goes away is no error; its response is closed",
    "write-errors-tolerance": "a client that goes away is no error",
    "memory-report": "the metrics of [admin] show it",
    "log-format": 'Combined Log Format, or JSON with log.format = "json"',
    "log-date": "each line has the time (UTC)",
    "log-master": _LOG,
    "log-maxsize": _LOG,
    "log-reopen": "SIGHUP reopens log files",
    "logto": _LOG,
    "logto2": _LOG,
    "logger": _LOG,
    "req-logger": f"log.access names where. {_LOG}",
    "log-x-forwarded-for": "proxy.trusted: then REMOTE_ADDR and the log have the client's address",
    "http-auto-gzip": "compression is the ingress's, or a WSGI middleware's",
    "http-auto-chunked": _HTTP,
    "http-chunked-input": _HTTP,
    "http-raw-body": _HTTP,
    "http-modifier1": _HTTP,
    "http-processes": _SINGLE,
    "http-to": "one process reads HTTP and runs the application",
    "http-websockets": "WebSockets are not served",
    "https": _TLS,
    "https-socket": _TLS,
    "shared-socket": "listen.bind takes several addresses",
    "wsgi-manage-chunked-input": "always so: wsgi.input reads chunked bodies too",
    "wsgi-disable-file-wrapper": "wsgi.file_wrapper is always there",
    "wsgi-env-behavior": "each request has an environ of its own",
    "wsgi-env-behaviour": "each request has an environ of its own",
    "wsgi-accept-buffer": "an application returns bytes (PEP 3333)",
    "manage-script-name": "mount applications in Python: werkzeug's DispatcherMiddleware",
    "mount": "mount applications in Python: werkzeug's DispatcherMiddleware",
    "add-header": "set fields in the application or the ingress",
    "post-buffering-bufsize": _HTTP,
    "offload-threads": "sending to slow clients holds no thread",
    "static-gzip": "compression is the ingress's",
    "static-gzip-all": "compression is the ingress's",
    "static-safe": "name the folder in a [[static]] of its own",
    "static-skip-ext": "leave such files out of the folder",
    "static-cache-paths": _HTTP,
    "mime-file": "the types of files are built in",
    "mimefile": "the types of files are built in",
    "harakiri-verbose": "always so: the stack of the thread is logged",
    "harakiri-graceful-timeout": "timeouts.request_action says what happens",
    "reuse-port": "one process listens",
    "so-keepalive": _HTTP,
    "tcp-nodelay": "always so",
    "so-send-timeout": "timeouts.write",
    "socket-sndbuf": _HTTP,
    "socket-rcvbuf": _HTTP,
    "no-defer-accept": _HTTP,
    "freebind": "listen on all interfaces instead",
    "abstract-socket": "a unix socket has a file",
    "protocol": "HTTP alone is spoken; nginx: proxy_pass, not uwsgi_pass",
    "fastcgi-socket": "HTTP alone is spoken; nginx: proxy_pass, not fastcgi_pass",
    "scgi-socket": "HTTP alone is spoken; nginx: proxy_pass, not scgi_pass",
    "cpu-affinity": "the container's CPU limit decides",
    "prio": "the container's CPU limit decides",
    "limit-as": "the container's memory limit decides, and limits.memory before it",
    "reload-on-as": "limits.memory looks at resident memory",
    "ksm": "one process has nothing to share",
    "import": "import it in the application's module",
    "shared-import": "import it in the application's module",
    "py-import": "import it in the application's module",
    "python-import": "import it in the application's module",
    "paste": "make the application in a module: app = loadapp('config:/path/to.ini')",
    "ini-paste": "make the application in a module: app = loadapp('config:/path/to.ini')",
    "paste-logger": "configure logging in that module",
    "pump": "not WSGI",
    "optimize": "set PYTHONOPTIMIZE in the environment",
    "no-site": "Python's own options: start it as python -S -m serve_zig",
    "py-tracebacker": "SIGUSR1 logs the stack of every thread; [admin] shows them at /threads",
    "catch-exceptions": "an exception is answered 500, with its traceback in the log alone",
    "reload-on-exception": "an exception ends its request, not the process",
    "show-config": "serve-zig --check prints the resolved config",
    "honour-stdin": "stdin is left alone",
    "max-fd": "raised as far as limits.connections needs and the hard limit allows",
    "max-vars": "limits.fields",
    "stats-http": "[admin] speaks HTTP",
    "stats-push": "Prometheus asks for the metrics",
    "skip-atexit": "at the end atexit functions run, for 10 s at most",
    "attach-daemon": _TASKS,
    "attach-daemon2": _TASKS,
    "smart-attach-daemon": _TASKS,
    "cron": _TASKS,
    "unique-cron": _TASKS,
    "timer": _TASKS,
    "farm": _TASKS,
    "plugin": _PLUGIN,
    "plugins": _PLUGIN,
    "need-plugin": _PLUGIN,
    "plugins-dir": _PLUGIN,
    "plugin-dir": _PLUGIN,
    "include": "not read; migrate that file, too",
    "inherit": "not read; migrate that file, too",
    "eval": "write a module",
    "ugreen": "threads take the place of greenlets",
    "asyncio": "threads take the place of greenlets",
    "gevent-monkey-patch": "take out monkey patching",
    "enable-metrics": "[admin] serves metrics",
}

PREFIXES: tuple[tuple[str, str], ...] = (
    ("cheaper", _REPLICAS),
    ("emperor", _REPLICAS),
    ("vassal", _REPLICAS),
    ("zerg", _REPLICAS),
    ("subscri", _REPLICAS),
    ("spooler", _TASKS),
    ("mule", _TASKS),
    ("legion", _REPLICAS),
    ("hook-", _HOOKS),
    ("exec-", _HOOKS),
    ("call-", _HOOKS),
    ("route", _ROUTES),
    ("response-route", _ROUTES),
    ("final-route", _ROUTES),
    ("error-route", _ROUTES),
    ("rewrite", _ROUTES),
    ("cache", _CACHE),
    ("sharedarea", _CACHE),
    ("queue", _CACHE),
    ("touch-", _TOUCH),
    ("fs-", _TOUCH),
    ("log-", _LOG_CHOICE),
    ("ssl-", _TLS),
    ("metric", "[admin] serves metrics"),
    ("stats-", "[admin] shows state and metrics"),
    ("carbon", "[admin] serves metrics for Prometheus"),
)

_MEBIBYTE = 1 << 20
_GREENLET_CALLS_MAX = 512
_HEAD_BYTES = 64 * 1024


def migrate(options: Options, origin: str) -> Document:
    """Return the document for the options of a file or a command line."""
    migration = _Migration(options, Document(origin))
    migration.run()
    return migration.document


def rules() -> set[str]:
    """Return the options that have a rule."""
    return set(_RULES)


def explanation(name: str) -> str:
    """Return why an option has no counterpart; empty where it is not known."""
    if LOGIC.fullmatch(name):
        return _LOGIC
    return EXPLAINED.get(name) or next(
        (text for prefix, text in PREFIXES if name.startswith(prefix)), ""
    )


class _Migration:
    def __init__(self, options: Options, document: Document) -> None:
        self.options = [(ALIASES.get(name, name), value) for name, value in options.given]
        self.referred = options.referred
        self.document = document
        self.binds: list[object] = []
        self.names: list[str] = []

    def run(self) -> None:
        """Go through the options."""
        for name, value in self.options:
            if value in ("false", "0", "no") and name not in _NUMBERS:
                continue
            rule = _RULES.get(name)
            if isinstance(value, Unknown) and (rule or not explanation(name)):
                self.document.note(_said(name, value), "not evaluated; write the value by hand.")
            elif rule is not None:
                rule(self, value)
            elif why := explanation(name):
                self.document.note(_said(name, value), f"{why}.")
            elif name not in self.referred:
                # Else a name that the file made up for itself: base = /srv/app.
                self.document.note(_said(name, value), "not known to serve-zig migrate.")
        self._finish()

    def _value(self, name: str) -> object:
        """Return the last value of an option; None where it is not given."""
        return next((value for key, value in reversed(self.options) if key == name), None)

    def _finish(self) -> None:
        document = self.document
        if self.binds:
            document.set("listen.bind", list(dict.fromkeys(self.binds)))
        if self.names:
            document.note(
                f"env ({', '.join(self.names)})",
                "set these in the environment of the process or container.",
            )
        self._target()
        self._calls()
        self._bodies()
        if not document.has("log.access"):
            document.set("log.access", "stderr", "uWSGI logs requests unless told otherwise.")

    def _bodies(self) -> None:
        """Leave out what limit-post makes impossible: no longer body comes to be held."""
        held, most = _integer(self._value("post-buffering")), _integer(self._value("limit-post"))
        if isinstance(held, int) and isinstance(most, int) and 0 < most < held:
            self.document.drop("limits.body_memory")

    def _target(self) -> None:
        module, file = self._value("module"), self._value("wsgi-file") or self._value("file")
        called = self._value("callable") or "application"
        if isinstance(module, Template | Unknown) or isinstance(called, Template | Unknown):
            return
        text = str(module) if module is not None else ""
        if not text and isinstance(file, str):
            folder = self._value("chdir")
            if os.path.isabs(file) and isinstance(folder, str):
                file = os.path.relpath(file, folder)
            text = file.removesuffix(".py").removesuffix(".wsgi").strip("./").replace("/", ".")
        if not text:
            return
        name, _, attribute = text.partition(":")
        text = f"{name}:{attribute or called}"
        try:
            parse_target(text)
        except TargetError as error:
            self.document.note(_said("module", text), f"{error}.")
            return
        self.document.set("app.target", text)

    def _calls(self) -> None:
        given = {name: self._value(name) for name in ("processes", "threads", "gevent", "async")}
        said = ", ".join(_said(name, value) for name, value in given.items() if value is not None)
        processes = _integer(given["processes"] or 1)
        each = _integer(given["gevent"] or given["async"] or given["threads"] or 1)
        safe = (
            "Calls run in threads of one process: the application must be thread-safe. "
            "For more CPU than one process takes run more containers."
        )
        if not isinstance(processes, int) or not isinstance(each, int):
            self.document.comment(
                "concurrency", f"{said}: threads is left at its default, 32. {safe}"
            )
            return
        calls = max(1, processes) * max(1, each)
        if given["gevent"] or given["async"]:
            calls = min(calls, _GREENLET_CALLS_MAX)
        self.document.set(
            "concurrency.threads",
            calls,
            f"From {said or 'the defaults, one process and one thread'}. {safe} The server's own "
            "default is 32; threads without work cost little.",
        )

    # Rules.

    def _passed(self, value: object) -> None:
        """The option is part of another one's rule."""

    def _chdir(self, value: object) -> None:
        self.document.set(
            "app.directory",
            value,
            "uWSGI's chdir: first on sys.path. The current folder stays what it is; start "
            "serve-zig in this one if the application opens files by relative names.",
        )

    def _env(self, value: object) -> None:
        self.names.append(str(value).partition("=")[0])

    def _http(self, value: object) -> None:
        self.binds.append(_address(value))

    def _socket(self, value: object) -> None:
        self.binds.append(_address(value))
        self.document.comment(
            "listen",
            f"socket = {value} spoke the uwsgi protocol; this speaks HTTP. nginx: proxy_pass "
            "http://..., not uwsgi_pass, with Host and X-Forwarded-For set.",
        )

    def _listen(self, value: object) -> None:
        self.document.set("listen.backlog", _integer(value))

    def _chmod_socket(self, value: object) -> None:
        text = "666" if value == "true" else str(value)
        try:
            self.document.set("listen.unix_mode", int(text, 8) & 0o777)
        except ValueError:
            self.document.note(_said("chmod-socket", value), "not an octal number.")

    def _harakiri(self, value: object) -> None:
        self.document.set(
            "timeouts.request",
            _seconds(value),
            "From harakiri. uWSGI ended the worker; here the client gets 504, the thread's stack "
            "goes to the log, and other requests go on.",
        )
        self.document.set("timeouts.request_action", "answer")

    def _reload_mercy(self, value: object) -> None:
        self.document.set("timeouts.drain", _seconds(value))

    def _socket_timeout(self, value: object) -> None:
        self.document.set("timeouts.body", _seconds(value))
        self.document.set("timeouts.write", _seconds(value))

    def _http_keepalive(self, value: object) -> None:
        if value != "true":
            self.document.set("timeouts.keep_alive", _seconds(value))

    def _buffer_size(self, value: object) -> None:
        size = _integer(value)
        if isinstance(size, int) and size <= _HEAD_BYTES:
            self.document.note(
                _said("buffer-size", value), "limits.head is 64 KiB where it is not set."
            )
        elif isinstance(size, int):
            self.document.set("limits.head", rounded_head(size), "From buffer-size.")

    def _post_buffering(self, value: object) -> None:
        size = _integer(value)
        if size != 0 and value != "true":
            self.document.set("limits.body_memory", size)

    def _limit_post(self, value: object) -> None:
        self.document.set("limits.body", _integer(value))

    def _max_requests(self, value: object) -> None:
        self._for_all("limits.requests", _integer(value), 1)

    def _reload_on_rss(self, value: object) -> None:
        self._for_all("limits.memory", _integer(value), _MEBIBYTE)

    def _for_all(self, path: str, each: object, unit: int) -> None:
        processes = _integer(self._value("processes") or 1)
        end = "It drains and ends with status 0, for the orchestrator to start it anew."
        if isinstance(each, int) and isinstance(processes, int):
            self.document.set(
                path,
                each * unit * max(1, processes),
                f"{each} for each of {max(1, processes)} processes; one takes what all took. {end}",
            )
        else:
            self.document.set(path, each, end)

    def _disable_logging(self, value: object) -> None:
        self.document.set("log.access", "off")

    def _log_slow(self, value: object) -> None:
        milliseconds = _integer(value)
        if isinstance(milliseconds, int):
            self.document.set("log.slow_request", milliseconds / 1000)

    def _stats(self, value: object) -> None:
        self.document.set(
            "admin.bind",
            _address(value),
            "From stats: /status is JSON too, but with other names; /metrics is for Prometheus.",
        )

    def _proxy_protocol(self, value: object) -> None:
        self.document.set("proxy.protocol", True, "Required from the peers in proxy.trusted.")
        self.document.set(
            "proxy.trusted",
            ["0.0.0.0/0", "::/0"],
            "uWSGI took the PROXY header of whoever connected; name the load balancers alone.",
        )

    def _static_map(self, value: object) -> None:
        if isinstance(value, Template):
            self.document.note(_said("static-map", value), "write [[static]] by hand.")
            return
        route, _, directory = str(value).partition("=")
        # Where there is no file, uWSGI asks the application.
        row: dict[str, str | bool] = {
            "route": route,
            "directory": directory,
            "fallthrough": True,
        }
        index, expires = self._value("static-index"), self._value("static-expires-uri")
        if isinstance(index, str):
            row["index"] = index
        seconds = str(expires or self._value("static-expires") or "").split(" ")[-1]
        if seconds.isdigit():
            row["cache_control"] = f"max-age={seconds}"
        self.document.add_static(row, "From static-map.")

    def _check_static(self, value: object) -> None:
        self.document.note(
            _said("check-static", value),
            "[[static]] answers for a path prefix; a folder beside the application's own paths is "
            "served by the application (WhiteNoise).",
        )


# Numbers, whose 0 is not the same as an option left out.
_NUMBERS = frozenset({"http-timeout", "post-buffering"})

_RULES: dict[str, Callable[[_Migration, object], None]] = {
    "async": _Migration._passed,
    "buffer-size": _Migration._buffer_size,
    "callable": _Migration._passed,
    "chdir": _Migration._chdir,
    "check-static": _Migration._check_static,
    "chmod-socket": _Migration._chmod_socket,
    "disable-logging": _Migration._disable_logging,
    "enable-proxy-protocol": _Migration._proxy_protocol,
    "env": _Migration._env,
    "file": _Migration._passed,
    "gevent": _Migration._passed,
    "harakiri": _Migration._harakiri,
    "http": _Migration._http,
    "http-enable-proxy-protocol": _Migration._proxy_protocol,
    "http-keepalive": _Migration._http_keepalive,
    "http-socket": _Migration._http,
    "http-timeout": _Migration._socket_timeout,
    "limit-post": _Migration._limit_post,
    "listen": _Migration._listen,
    "log-slow": _Migration._log_slow,
    "max-requests": _Migration._max_requests,
    "module": _Migration._passed,
    "post-buffering": _Migration._post_buffering,
    "processes": _Migration._passed,
    "reload-mercy": _Migration._reload_mercy,
    "reload-on-rss": _Migration._reload_on_rss,
    "socket": _Migration._socket,
    "socket-timeout": _Migration._socket_timeout,
    "static-expires": _Migration._passed,
    "static-expires-uri": _Migration._passed,
    "static-index": _Migration._passed,
    "static-map": _Migration._static_map,
    "static-map2": _Migration._static_map,
    "stats": _Migration._stats,
    "stats-server": _Migration._stats,
    "threads": _Migration._passed,
    "wsgi-file": _Migration._passed,
}


def _said(name: str, value: object) -> str:
    return f"{name} = {shown(value, str)}"


def _address(value: object) -> object:
    if isinstance(value, Template):
        return Template(_prefixed(value.text))
    return _prefixed(str(value))


def _prefixed(text: str) -> str:
    """Return an address; a name without a colon is the path of a unix socket."""
    if ":" not in text and "$" not in text:
        return f"unix:{text}"
    return address(text)


def _integer(value: object) -> object:
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() else Unknown(value)
    return value


def _seconds(value: object) -> object:
    number = _integer(value)
    return float(number) if isinstance(number, int) else number
