"""What each setting of gunicorn is in serve.toml, or why it has no counterpart.

``OPTIONS`` has every setting with its flags, as gunicorn 27.0 knows them. A setting has either a
rule, a method of ``_Migration`` of the same name, or an explanation. tests/test_migrate.py compares
all three with gunicorn's own list.
"""

from __future__ import annotations

import argparse

from serve_zig.kinds import size_text
from serve_zig.migration import Document, Setting, Template, Unknown, address
from serve_zig.target import TargetError, parse_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Settings = dict[str, object]

_VALUE, _LIST, _TRUE, _FALSE, _OPTIONAL = "value", "list", "true", "false", "optional"

OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "config": (_VALUE, ("-c", "--config")),
    "wsgi_app": (_VALUE, ()),
    "bind": (_LIST, ("-b", "--bind")),
    "backlog": (_VALUE, ("--backlog",)),
    "workers": (_VALUE, ("-w", "--workers")),
    "worker_class": (_VALUE, ("-k", "--worker-class")),
    "threads": (_VALUE, ("--threads",)),
    "worker_connections": (_VALUE, ("--worker-connections",)),
    "max_requests": (_VALUE, ("--max-requests",)),
    "max_requests_jitter": (_VALUE, ("--max-requests-jitter",)),
    "timeout": (_VALUE, ("-t", "--timeout")),
    "graceful_timeout": (_VALUE, ("--graceful-timeout",)),
    "keepalive": (_VALUE, ("--keep-alive",)),
    "asgi_loop": (_VALUE, ("--asgi-loop",)),
    "asgi_lifespan": (_VALUE, ("--asgi-lifespan",)),
    "asgi_disconnect_grace_period": (_VALUE, ("--asgi-disconnect-grace-period",)),
    "websocket_max_message_size": (_VALUE, ("--websocket-max-message-size",)),
    "http_parser": (_VALUE, ("--http-parser",)),
    "limit_request_line": (_VALUE, ("--limit-request-line",)),
    "limit_request_fields": (_VALUE, ("--limit-request-fields",)),
    "limit_request_field_size": (_VALUE, ("--limit-request-field_size",)),
    "reload": (_TRUE, ("--reload",)),
    "reload_engine": (_VALUE, ("--reload-engine",)),
    "reload_extra_files": (_LIST, ("--reload-extra-file",)),
    "spew": (_TRUE, ("--spew",)),
    "check_config": (_TRUE, ("--check-config",)),
    "print_config": (_TRUE, ("--print-config",)),
    "preload_app": (_TRUE, ("--preload",)),
    "sendfile": (_FALSE, ("--no-sendfile",)),
    "reuse_port": (_TRUE, ("--reuse-port",)),
    "chdir": (_VALUE, ("--chdir",)),
    "daemon": (_TRUE, ("-D", "--daemon")),
    "raw_env": (_LIST, ("-e", "--env")),
    "pidfile": (_VALUE, ("-p", "--pid")),
    "worker_tmp_dir": (_VALUE, ("--worker-tmp-dir",)),
    "user": (_VALUE, ("-u", "--user")),
    "group": (_VALUE, ("-g", "--group")),
    "umask": (_VALUE, ("-m", "--umask")),
    "initgroups": (_TRUE, ("--initgroups",)),
    "tmp_upload_dir": (_VALUE, ()),
    "secure_scheme_headers": (_VALUE, ()),
    "forwarded_allow_ips": (_VALUE, ("--forwarded-allow-ips",)),
    "accesslog": (_VALUE, ("--access-logfile",)),
    "disable_redirect_access_to_syslog": (_TRUE, ("--disable-redirect-access-to-syslog",)),
    "access_log_format": (_VALUE, ("--access-logformat",)),
    "errorlog": (_VALUE, ("--error-logfile", "--log-file")),
    "loglevel": (_VALUE, ("--log-level",)),
    "capture_output": (_TRUE, ("--capture-output",)),
    "logger_class": (_VALUE, ("--logger-class",)),
    "logconfig": (_VALUE, ("--log-config",)),
    "logconfig_dict": (_VALUE, ()),
    "logconfig_json": (_VALUE, ("--log-config-json",)),
    "syslog_addr": (_VALUE, ("--log-syslog-to",)),
    "syslog": (_TRUE, ("--log-syslog",)),
    "syslog_prefix": (_VALUE, ("--log-syslog-prefix",)),
    "syslog_facility": (_VALUE, ("--log-syslog-facility",)),
    "enable_stdio_inheritance": (_TRUE, ("-R", "--enable-stdio-inheritance")),
    "statsd_host": (_VALUE, ("--statsd-host",)),
    "dogstatsd_tags": (_VALUE, ("--dogstatsd-tags",)),
    "statsd_prefix": (_VALUE, ("--statsd-prefix",)),
    "enable_backlog_metric": (_TRUE, ("--enable-backlog-metric",)),
    "proc_name": (_VALUE, ("-n", "--name")),
    "default_proc_name": (_VALUE, ()),
    "pythonpath": (_VALUE, ("--pythonpath",)),
    "paste": (_VALUE, ("--paste", "--paster")),
    "raw_paste_global_conf": (_LIST, ("--paste-global",)),
    "on_starting": (_VALUE, ()),
    "on_reload": (_VALUE, ()),
    "when_ready": (_VALUE, ()),
    "pre_fork": (_VALUE, ()),
    "post_fork": (_VALUE, ()),
    "post_worker_init": (_VALUE, ()),
    "worker_int": (_VALUE, ()),
    "worker_abort": (_VALUE, ()),
    "pre_exec": (_VALUE, ()),
    "pre_request": (_VALUE, ()),
    "post_request": (_VALUE, ()),
    "child_exit": (_VALUE, ()),
    "worker_exit": (_VALUE, ()),
    "nworkers_changed": (_VALUE, ()),
    "on_exit": (_VALUE, ()),
    "ssl_context": (_VALUE, ()),
    "proxy_protocol": (_OPTIONAL, ("--proxy-protocol",)),
    "proxy_allow_ips": (_VALUE, ("--proxy-allow-from",)),
    "protocol": (_VALUE, ("--protocol",)),
    "uwsgi_allow_ips": (_VALUE, ("--uwsgi-allow-from",)),
    "keyfile": (_VALUE, ("--keyfile",)),
    "certfile": (_VALUE, ("--certfile",)),
    "ssl_version": (_VALUE, ("--ssl-version",)),
    "cert_reqs": (_VALUE, ("--cert-reqs",)),
    "ca_certs": (_VALUE, ("--ca-certs",)),
    "suppress_ragged_eofs": (_TRUE, ("--suppress-ragged-eofs",)),
    "do_handshake_on_connect": (_TRUE, ("--do-handshake-on-connect",)),
    "ciphers": (_VALUE, ("--ciphers",)),
    "http_protocols": (_VALUE, ("--http-protocols",)),
    "http2_cleartext": (_VALUE, ("--http2-cleartext",)),
    "http2_max_concurrent_streams": (_VALUE, ("--http2-max-concurrent-streams",)),
    "http2_initial_window_size": (_VALUE, ("--http2-initial-window-size",)),
    "http2_max_frame_size": (_VALUE, ("--http2-max-frame-size",)),
    "http2_max_header_list_size": (_VALUE, ("--http2-max-header-list-size",)),
    "permit_obsolete_folding": (_TRUE, ("--permit-obsolete-folding",)),
    "strip_header_spaces": (_TRUE, ("--strip-header-spaces",)),
    "permit_unconventional_http_method": (_TRUE, ("--permit-unconventional-http-method",)),
    "permit_unconventional_http_version": (_TRUE, ("--permit-unconventional-http-version",)),
    "casefold_http_method": (_TRUE, ("--casefold-http-method",)),
    "forwarder_headers": (_VALUE, ("--forwarder-headers",)),
    "header_map": (_VALUE, ("--header-map",)),
    "root_path": (_VALUE, ("--root-path",)),
    "dirty_apps": (_LIST, ("--dirty-app",)),
    "dirty_workers": (_VALUE, ("--dirty-workers",)),
    "dirty_timeout": (_VALUE, ("--dirty-timeout",)),
    "dirty_threads": (_VALUE, ("--dirty-threads",)),
    "dirty_graceful_timeout": (_VALUE, ("--dirty-graceful-timeout",)),
    "on_dirty_starting": (_VALUE, ()),
    "dirty_post_fork": (_VALUE, ()),
    "dirty_worker_init": (_VALUE, ()),
    "dirty_worker_exit": (_VALUE, ()),
    "control_socket": (_VALUE, ("--control-socket",)),
    "control_socket_mode": (_VALUE, ("--control-socket-mode",)),
    "control_socket_disable": (_TRUE, ("--no-control-socket",)),
}
"""Every setting: how the command line gives it, and its flags."""

_FORK = (
    "a hook of worker processes; there are none, and no fork: what it did belongs into the "
    "module's top level or app.startup"
)
_ASGI = "for ASGI applications; serve-zig serves WSGI"
_TLS = "TLS ends before serve-zig, at the ingress, load balancer or a sidecar"
_HTTP2 = f"HTTP/2 to the client is the load balancer's; {_TLS}"
_SYSLOG = "the log goes to stderr, for the container's runtime to collect"
_LOGGING = (
    'the server writes its own log; log.format = "json" has every field. The application\'s '
    "loggers are its own to configure"
)
_STATSD = (
    "[admin] serves Prometheus metrics at /metrics; statsd_exporter or the agent can take them"
)
_LENIENT = "the parser is strict: what two readers could read in two ways is refused with 400"
_DIRTY = "processes for heavy work; give that to a task queue (Celery, RQ, Dramatiq)"
_CONTROL = "no control socket; the admin listener, [admin], shows state, and signals control"
_CONTAINER = "the container's own: USER in the Dockerfile, runAsUser in Kubernetes"
_RELOAD = "a switch of the command line: serve-zig --reload, for development"

EXPLAINED: dict[str, str] = {
    "config": "read, and part of what is above",
    "preload_app": "always so: the application is imported once, before the first request",
    "reload": _RELOAD,
    "reload_engine": _RELOAD,
    "reload_extra_files": f"{_RELOAD}; it watches app.directory and the config",
    "spew": "use a tracer or debugger of Python",
    "check_config": "serve-zig --check imports the application and prints the resolved config",
    "print_config": "serve-zig --check prints the resolved config",
    "sendfile": "wsgi.file_wrapper is always there; how a file is sent is the server's choice",
    "reuse_port": "one process listens; more containers, not more processes on one port",
    "daemon": "serve-zig stays in the foreground, as containers and systemd want it",
    "pidfile": "serve-zig stays in the foreground; the supervisor knows the process",
    "worker_tmp_dir": "there is no heartbeat file; nothing is written to the file system",
    "user": _CONTAINER,
    "group": _CONTAINER,
    "initgroups": _CONTAINER,
    "tmp_upload_dir": "set TMPDIR in the environment: a request body past limits.body_memory is "
    "in an unlinked file there",
    "secure_scheme_headers": "with proxy.trusted set, X-Forwarded-Proto (or Forwarded) from a "
    "trusted proxy sets wsgi.url_scheme; other fields are not read",
    "forwarder_headers": "fields with an underscore are always dropped, from proxies too; mount "
    "the application in Python (DispatcherMiddleware) to set SCRIPT_NAME",
    "disable_redirect_access_to_syslog": _SYSLOG,
    "syslog": _SYSLOG,
    "syslog_addr": _SYSLOG,
    "syslog_prefix": _SYSLOG,
    "syslog_facility": _SYSLOG,
    "errorlog": "the log goes to stderr; redirect that (2> FILE) where a file is wanted",
    "capture_output": "stdout and stderr are left alone, and both reach the container's log",
    "enable_stdio_inheritance": "stdout and stderr are left alone",
    "access_log_format": "the access log is the Combined Log Format, or JSON with "
    'log.format = "json": time, client, target, status, bytes, seconds, phases, request id',
    "logger_class": _LOGGING,
    "logconfig": _LOGGING,
    "logconfig_dict": _LOGGING,
    "logconfig_json": _LOGGING,
    "statsd_host": _STATSD,
    "statsd_prefix": _STATSD,
    "dogstatsd_tags": _STATSD,
    "enable_backlog_metric": "the gauge serve_zig_queue_depth is always there, with [admin]",
    "proc_name": "the process keeps its name",
    "default_proc_name": "the process keeps its name",
    "pythonpath": "set PYTHONPATH in the environment; app.directory alone comes before it",
    "paste": "make the application in a module: app = loadapp('config:/path/to.ini')",
    "raw_paste_global_conf": "pass it to loadapp(..., global_conf=...) in a module",
    "on_reload": "nothing is reloaded in a running process; the orchestrator replaces it",
    "pre_fork": _FORK,
    "post_fork": _FORK,
    "post_worker_init": _FORK,
    "worker_int": _FORK,
    "worker_abort": f"{_FORK}. timeouts.request logs the stack of a call that takes too long",
    "pre_exec": _FORK,
    "child_exit": f"{_FORK}. Metrics of prometheus_client need no multiprocess mode",
    "worker_exit": f"{_FORK}; at the end app.shutdown runs",
    "nworkers_changed": _FORK,
    "pre_request": "wrap the application in a WSGI middleware; the access log and the metrics "
    "measure requests themselves",
    "post_request": "wrap the application in a WSGI middleware; the access log and the metrics "
    "measure requests themselves",
    "ssl_context": _TLS,
    "keyfile": _TLS,
    "certfile": _TLS,
    "ssl_version": _TLS,
    "cert_reqs": _TLS,
    "ca_certs": _TLS,
    "suppress_ragged_eofs": _TLS,
    "do_handshake_on_connect": _TLS,
    "ciphers": _TLS,
    "http_protocols": _HTTP2,
    "http2_cleartext": _HTTP2,
    "http2_max_concurrent_streams": _HTTP2,
    "http2_initial_window_size": _HTTP2,
    "http2_max_frame_size": _HTTP2,
    "http2_max_header_list_size": _HTTP2,
    "uwsgi_allow_ips": "the uwsgi protocol is not spoken; nginx: proxy_pass, not uwsgi_pass",
    "permit_obsolete_folding": _LENIENT,
    "strip_header_spaces": _LENIENT,
    "permit_unconventional_http_method": "any token is a method; the application refuses it",
    "permit_unconventional_http_version": _LENIENT,
    "casefold_http_method": "methods are case-sensitive (RFC 9110 section 9.1)",
    "header_map": "fields with an underscore are dropped, since X_Y and X-Y become one key",
    "root_path": _ASGI,
    "asgi_loop": _ASGI,
    "asgi_lifespan": _ASGI,
    "asgi_disconnect_grace_period": _ASGI,
    "websocket_max_message_size": _ASGI,
    "http_parser": "there is one parser, in Zig",
    "dirty_apps": _DIRTY,
    "dirty_workers": _DIRTY,
    "dirty_timeout": _DIRTY,
    "dirty_threads": _DIRTY,
    "dirty_graceful_timeout": _DIRTY,
    "on_dirty_starting": _DIRTY,
    "dirty_post_fork": _DIRTY,
    "dirty_worker_init": _DIRTY,
    "dirty_worker_exit": _DIRTY,
    "control_socket": _CONTROL,
    "control_socket_mode": _CONTROL,
    "control_socket_disable": _CONTROL,
}

_SCALING = ("worker_class", "workers", "threads")
_GREENLETS = ("gevent", "eventlet", "tornado")
_GREENLET_CALLS_MAX = 512
_LINE_BYTES_MAX = 8190
_FIELDS_MAX = 10_000
_HEAD_BYTES = 64 * 1024
_LOOPBACK = ["127.0.0.1", "::1"]
_LEVELS = {"debug": "info", "info": "info", "warning": "warning", "error": "error"}
_LEVELS["critical"] = "error"


def parse_command_line(arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """Return the settings that gunicorn's own arguments give, and what remains: the application.

    An unknown option ends the program, as with gunicorn.
    """
    parser = argparse.ArgumentParser(prog="serve-zig migrate gunicorn", add_help=False)
    for name, (form, flags) in OPTIONS.items():
        if form == _LIST:
            parser.add_argument(*flags, dest=name, action="append")
        elif form == _OPTIONAL:
            parser.add_argument(*flags, dest=name, nargs="?", const="auto")
        elif form in (_TRUE, _FALSE):
            parser.add_argument(*flags, dest=name, action="store_const", const=form == _TRUE)
        elif flags:
            parser.add_argument(*flags, dest=name)
    parser.add_argument("rest", nargs="*")
    found = vars(parser.parse_args(list(arguments)))
    rest = found.pop("rest")
    return {name: value for name, value in found.items() if value is not None}, rest


def migrate(settings: Settings, origin: str) -> Document:
    """Return the document for settings by name; names that gunicorn does not know are passed by."""
    migration = _Migration(settings, Document(origin))
    migration.run()
    return migration.document


class _Migration:
    def __init__(self, settings: Settings, document: Document) -> None:
        # None is what gunicorn's own default is written as.
        self.settings = {name: value for name, value in settings.items() if value is not None}
        self.document = document
        self.trusted: list[str] = []

    def run(self) -> None:
        """Go through every setting, in gunicorn's order."""
        for name in OPTIONS:
            value = self.settings.get(name)
            if value is None:
                continue
            if name in EXPLAINED:
                self.document.note(str(Setting(name, value)), f"{EXPLAINED[name]}.")
            elif isinstance(value, Unknown):
                if name in _SCALING:
                    # Told once, with [concurrency].
                    continue
                self.document.note(
                    str(Setting(name, value)),
                    "not evaluated, since it depends on more than the file; write the value by "
                    "hand, or let --execute run the file.",
                )
            else:
                getattr(self, f"_{name}")(value)
        self._defaults()

    def _defaults(self) -> None:
        """Say what gunicorn does where nothing is set and the server would do otherwise."""
        document = self.document
        if not document.has("listen.bind"):
            document.set(
                "listen.bind",
                ["127.0.0.1:8000"],
                "gunicorn's default; where the environment has PORT it listens on 0.0.0.0:$PORT: "
                'then write ":${PORT}".',
            )
        self._calls()
        if not document.has("proxy.trusted"):
            document.set(
                "proxy.trusted",
                self._with_unix(_LOOPBACK),
                "gunicorn's default of forwarded_allow_ips. From these, X-Forwarded-For sets "
                "REMOTE_ADDR too, which gunicorn leaves alone.",
            )

    # The application.

    def _wsgi_app(self, value: object) -> None:
        text = str(value).strip()
        if isinstance(value, Template):
            self.document.set("app.target", value)
            return
        if ":" not in text:
            text = f"{text}:application"
        try:
            parse_target(text)
        except TargetError as error:
            self.document.note(str(Setting("wsgi_app", value)), f"{error}.")
            return
        self.document.set("app.target", text)

    def _chdir(self, value: object) -> None:
        self.document.set(
            "app.directory",
            value,
            "gunicorn's chdir: first on sys.path. The current folder stays what it is; start "
            "serve-zig in this one if the application opens files by relative names.",
        )

    def _raw_env(self, value: object) -> None:
        entries = value if isinstance(value, list) else [value]
        names = ", ".join(str(entry).partition("=")[0] for entry in entries)
        self.document.note(
            f"raw_env ({names})", "set these in the environment of the process or container."
        )

    def _on_starting(self, value: object) -> None:
        self._startup("on_starting", value)

    def _when_ready(self, value: object) -> None:
        self._startup("when_ready", value)

    def _startup(self, name: str, value: object) -> None:
        self.document.note(
            str(Setting(name, value)),
            'app.startup = "package.module:function" runs once, after the import and before the '
            "first request; the function takes no arguments and stands in the application.",
        )

    def _on_exit(self, value: object) -> None:
        self.document.note(
            str(Setting("on_exit", value)),
            'app.shutdown = "package.module:function" runs once, after the drain; the function '
            "takes no arguments and stands in the application.",
        )

    # Where it listens.

    def _bind(self, value: object) -> None:
        entries = value if isinstance(value, list) else [value]
        found: list[object] = []
        for entry in entries:
            if isinstance(entry, Template):
                found.append(Template(address(entry.text)))
            elif isinstance(entry, str):
                found.append(address(entry))
            else:
                self.document.note(str(Setting("bind", entry)), "not evaluated; write it by hand.")
        if found:
            self.document.set("listen.bind", list(dict.fromkeys(found)))

    def _backlog(self, value: object) -> None:
        self.document.set("listen.backlog", _number(value))

    def _umask(self, value: object) -> None:
        mask = _number(value)
        if isinstance(mask, int) and self._has_unix():
            self.document.set("listen.unix_mode", 0o666 & ~mask, f"From umask = {mask:#o}.")
        elif not self._has_unix():
            self.document.note(
                str(Setting("umask", value)), "set it in the shell that starts serve-zig."
            )

    def _protocol(self, value: object) -> None:
        if value != "http":
            self.document.note(str(Setting("protocol", value)), f"{EXPLAINED['uwsgi_allow_ips']}.")

    # How much at once.

    def _workers(self, value: object) -> None:
        """Part of _calls."""

    def _threads(self, value: object) -> None:
        """Part of _calls."""

    def _worker_class(self, value: object) -> None:
        name = str(value)
        if "uvicorn" in name or "asgi" in name.lower() or "uvloop" in name:
            self.document.note(
                str(Setting("worker_class", value)),
                "the application speaks ASGI, which serve-zig does not; wrap it: "
                "app = a2wsgi.ASGIMiddleware(app).",
            )

    def _calls(self) -> None:
        """Set the calls in progress: those of all workers together."""
        workers = _number(self.settings.get("workers", 1))
        threads = _number(self.settings.get("threads", 1))
        kind = str(self.settings.get("worker_class", "sync"))
        said = ", ".join(
            str(Setting(name, self.settings[name])) for name in _SCALING if name in self.settings
        )
        safe = "Calls run in threads of one process: the application must be thread-safe. "
        cores = "For more CPU than one process takes run more containers. "
        if any(word in kind for word in _GREENLETS):
            each = _number(self.settings.get("worker_connections", 1000))
            if isinstance(workers, int) and isinstance(each, int):
                self.document.set(
                    "concurrency.threads",
                    max(1, min(_GREENLET_CALLS_MAX, workers * each)),
                    f"From {said}: threads in place of greenlets. {safe}{cores}"
                    "Take out monkey.patch_all(). A slow client or a waiting stream takes none.",
                )
                return
        elif isinstance(workers, int) and isinstance(threads, int):
            self.document.set(
                "concurrency.threads",
                max(1, workers) * max(1, threads),
                f"From {said or 'the defaults, one worker and one thread'}. {safe}{cores}"
                "The server's own default is 32; threads without work cost little.",
            )
            return
        elif isinstance(threads, Template) and workers == 1:
            self.document.set("concurrency.threads", threads, safe + cores)
            return
        self.document.comment(
            "concurrency",
            f"{said}: how many calls ran at once is not known here; threads is left at its "
            f"default, 32. {safe}{cores}".strip(),
        )

    def _worker_connections(self, value: object) -> None:
        workers = _number(self.settings.get("workers", 1))
        each = _number(value)
        if isinstance(each, Template) and workers == 1:
            self.document.set("limits.connections", each)
        elif isinstance(each, int) and isinstance(workers, int):
            self.document.set(
                "limits.connections",
                each * max(1, workers),
                "From worker_connections, of all workers together. The server's own default is "
                "10000; past it the longest-idle connection is closed.",
            )
        else:
            self.document.note(
                str(Setting("worker_connections", value)),
                "limits.connections is left at its default, 10000.",
            )

    # How long.

    def _timeout(self, value: object) -> None:
        seconds = _seconds(value)
        if seconds == 0.0:
            self.document.set("timeouts.request", 0.0, "From timeout = 0.")
            return
        kind = str(self.settings.get("worker_class", "sync"))
        is_sync = kind == "sync" and _number(self.settings.get("threads", 1)) == 1
        if is_sync:
            self.document.set(
                "timeouts.request",
                seconds,
                "From timeout. gunicorn ended the worker, and its client's connection; here the "
                "client gets 504, the thread's stack goes to the log, and other requests go on.",
            )
            self.document.set("timeouts.request_action", "answer")
        else:
            self.document.set(
                "timeouts.request",
                seconds,
                "From timeout, which for this worker class was a heartbeat, and no limit on a "
                "request. Here a call that takes longer has its stack logged, and goes on.",
            )

    def _graceful_timeout(self, value: object) -> None:
        seconds = _seconds(value)
        self.document.set("timeouts.drain", 0.001 if seconds == 0.0 else seconds)

    def _keepalive(self, value: object) -> None:
        seconds = _seconds(value)
        if seconds == 0.0:
            self.document.set(
                "limits.requests_per_connection", 1, "From keepalive = 0: none is kept alive."
            )
            return
        self.document.set(
            "timeouts.keep_alive",
            seconds,
            "From keepalive. Behind a load balancer it must be longer than the idle time there, "
            "or some requests end in 502; the server's own default is 75.",
        )

    # Limits.

    def _max_requests(self, value: object) -> None:
        self._requests("limits.requests", value)

    def _max_requests_jitter(self, value: object) -> None:
        if _number(self.settings.get("max_requests", 0)) == 0:
            self.document.note(
                str(Setting("max_requests_jitter", value)),
                "without max_requests it has no effect, in gunicorn as well.",
            )
            return
        self._requests("limits.requests_jitter", value)

    def _requests(self, path: str, value: object) -> None:
        requests = _number(value)
        workers = _number(self.settings.get("workers", 1))
        if isinstance(requests, int) and isinstance(workers, int) and workers > 1:
            self.document.set(
                path,
                requests * workers,
                f"{requests} for each of {workers} workers; one process takes what all of them "
                "took. It drains and ends with status 0, for the orchestrator to start it anew.",
            )
        else:
            self.document.set(
                path,
                requests,
                "The process drains and ends with status 0, for the orchestrator to start it anew.",
            )

    def _limit_request_line(self, value: object) -> None:
        limit = _number(value)
        if isinstance(limit, int):
            limit = min(limit, _LINE_BYTES_MAX) if limit else 1 << 20
        self.document.set("limits.request_line", limit)
        self._head()

    def _limit_request_fields(self, value: object) -> None:
        limit = _number(value)
        if isinstance(limit, int):
            limit = min(limit or _FIELDS_MAX, _FIELDS_MAX)
        self.document.set("limits.fields", limit)

    def _limit_request_field_size(self, value: object) -> None:
        self.document.note(
            str(Setting("limit_request_field_size", value)),
            "no limit on a single field; limits.head is one on the whole head, 64 KiB where it is "
            "not set.",
        )
        self._head()

    def _head(self) -> None:
        """Make room in the head for the longest line and one longest field."""
        line = _number(self.settings.get("limit_request_line", 0))
        field = _number(self.settings.get("limit_request_field_size", 0))
        if not isinstance(line, int) or not isinstance(field, int):
            return
        if "limit_request_line" in self.settings and line == 0:
            line = 1 << 20
        needed = min(line, 1 << 20) + min(field, 8 << 20)
        if needed > _HEAD_BYTES:
            self.document.set(
                "limits.head", rounded_head(needed), "Request line and field lines together."
            )

    # Proxies.

    def _forwarded_allow_ips(self, value: object) -> None:
        self._trust("forwarded_allow_ips", value)

    def _proxy_allow_ips(self, value: object) -> None:
        self._trust("proxy_allow_ips", value)

    def _trust(self, name: str, value: object) -> None:
        if isinstance(value, Template):
            self.document.note(
                str(Setting(name, value)),
                "a list in one variable; write proxy.trusted as a list with an entry for each.",
            )
            return
        entries = value if isinstance(value, list) else str(value).split(",")
        trusted = self._with_unix([str(entry).strip() for entry in entries if str(entry).strip()])
        if "*" in trusted:
            trusted = ["0.0.0.0/0", "::/0", "unix"]
        self.trusted = list(dict.fromkeys([*self.trusted, *trusted]))
        self.document.set(
            "proxy.trusted",
            self.trusted,
            f"From {name}. X-Forwarded-For sets REMOTE_ADDR too, which gunicorn leaves alone.",
        )

    def _with_unix(self, trusted: list[str]) -> list[str]:
        # gunicorn believes whoever connects to a unix socket.
        return [*trusted, "unix"] if self._has_unix() else trusted

    def _has_unix(self) -> bool:
        bind = self.settings.get("bind", "")
        entries = bind if isinstance(bind, list) else [bind]
        return any(str(entry).startswith("unix:") for entry in entries)

    def _proxy_protocol(self, value: object) -> None:
        word = str(value).lower().strip()
        if word in ("false", "off", "0", "none"):
            return
        both = " Both versions are read." if word in ("v1", "v2") else ""
        self.document.set("proxy.protocol", True, f"Required from trusted peers.{both}")

    # Logs.

    def _accesslog(self, value: object) -> None:
        self.document.set("log.access", "stdout" if value == "-" else value)

    def _loglevel(self, value: object) -> None:
        if isinstance(value, Template):
            self.document.set("log.level", value, 'The words are "info", "warning" and "error".')
            return
        level = _LEVELS.get(str(value).lower())
        if level is None:
            self.document.note(str(Setting("loglevel", value)), "no such level; left at info.")
            return
        self.document.set("log.level", level)


def rounded_head(size: int) -> str:
    """Return a size in bytes, at most what a head may have, as the config writes it."""
    return size_text(min(-(-size // 1024) * 1024, 16 << 20))


def _number(value: object) -> object:
    """Return a number that gunicorn takes as one, also out of a string; others as they are."""
    if isinstance(value, str):
        try:
            return int(value, 0)
        except ValueError:
            return Unknown(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _seconds(value: object) -> object:
    number = _number(value)
    return float(number) if isinstance(number, int) else number


def rules() -> set[str]:
    """Return the settings that have a rule."""
    return {name for name in OPTIONS if hasattr(_Migration, f"_{name}")}
