"""Starts a peer that has no command line of its own, or none that reaches the settings it needs.

python benchmarks/launch.py bjoern|fastpysgi|cheroot package.module:callable PORT THREADS LIMIT
"""

from __future__ import annotations

import importlib
import sys


def run_bjoern(app: object, port: int, threads: int, connections: int) -> None:
    server = importlib.import_module("bjoern")
    server.run(app, "127.0.0.1", port)


def run_fastpysgi(app: object, port: int, threads: int, connections: int) -> None:
    server = importlib.import_module("fastpysgi")
    server.run(app, "127.0.0.1", port)


def run_cheroot(app: object, port: int, threads: int, connections: int) -> None:
    wsgi = importlib.import_module("cheroot.wsgi")
    server = wsgi.Server(
        ("127.0.0.1", port), app, numthreads=threads, request_queue_size=1024, timeout=75
    )
    # 10 by default: with more clients than that, each request would be a new connection.
    server.keep_alive_conn_limit = connections
    try:
        server.start()
    except KeyboardInterrupt:
        server.stop()


STARTERS = {"bjoern": run_bjoern, "fastpysgi": run_fastpysgi, "cheroot": run_cheroot}


def main() -> None:
    name, target, port, threads, connections = sys.argv[1:]
    module, _, attribute = target.partition(":")
    # This folder is first on sys.path, since the script lies in it: no module of it must shadow
    # one that the application imports.
    sys.path[0] = "."
    app = getattr(importlib.import_module(module), attribute)
    STARTERS[name](app, int(port), int(threads), int(connections))


if __name__ == "__main__":
    main()
