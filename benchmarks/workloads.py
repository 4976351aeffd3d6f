"""The workloads: which application, how it is loaded, and what the server is given."""

from __future__ import annotations

import sys
import timeit
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The default of serve-zig's concurrency.threads; peers that have threads get as many.
THREADS = 32
SWITCH_INTERVAL_MS = sys.getswitchinterval() * 1000


@dataclass(frozen=True)
class Load:
    """What one client does. `name` tells the loads of a workload apart in the tables."""

    name: str
    path: str
    connections: int
    script: str = "report.lua"
    # Requests a second, of a second run that open_loop.py makes beside the other loads: about half
    # of what the slowest server of the field answers. None: only wrk loads it.
    open_rate: float | None = None


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    module: str
    loads: tuple[Load, ...]
    # The reply to the first load's request, to know before measuring that the server does the work.
    # None: the body is checked by its length alone.
    reply: bytes | None = b"Hello, World!"
    reply_bytes: int = 13
    method: str = "GET"
    threads: int = THREADS
    threads_set: bool = False
    # True: the server is held on one core and wrk on another. False: both may use every core.
    pinned: bool = True
    has_floor: bool = False
    # Connections held open without a request beside the load.
    idle_connections: int = 0

    @property
    def connections(self) -> int:
        return self.idle_connections + sum(load.connections for load in self.loads)

    @property
    def target(self) -> str:
        return f"benchmarks.applications.{self.module}:app"


WORKLOADS = (
    Workload(
        "hello",
        "13-byte reply, 64 keep-alive connections",
        "hello",
        (Load("hello", "/", 64),),
        has_floor=True,
    ),
    Workload(
        "json",
        "JSON reply, 9 browser and proxy request fields, 64 connections",
        "reply_json",
        (Load("json", "/json", 64, "browser.lua"),),
        reply=b'{"message": "Hello, World!"}',
        reply_bytes=28,
        has_floor=True,
    ),
    Workload(
        "echo",
        "10 KiB POST echoed, 64 connections",
        "echo",
        (Load("echo", "/", 64, "post.lua"),),
        reply=b"x" * 10240,
        reply_bytes=10240,
        method="POST",
    ),
    Workload(
        "flask",
        "Flask hello, 64 connections",
        "flask_hello",
        (Load("flask", "/", 64),),
        pinned=False,
    ),
    Workload(
        "django",
        "Django hello, 64 connections",
        "django_hello",
        (Load("django", "/", 64),),
        pinned=False,
    ),
    Workload(
        "sleep",
        "64 connections on a 10 ms sleep, 64 threads",
        "mixed",
        (Load("sleep", "/sleep/10", 64, open_rate=2000),),
        threads=64,
        threads_set=True,
        pinned=False,
    ),
    Workload(
        "mixed_sleep",
        "16 connections on a 50 ms sleep beside 16 on the 13-byte reply",
        "mixed",
        (Load("fast", "/", 16, open_rate=1000), Load("slow", "/sleep/50", 16)),
        pinned=False,
    ),
    Workload(
        "mixed_cpu",
        "16 connections on a 2 ms pure-Python loop beside 16 on the 13-byte reply",
        "mixed",
        (Load("fast", "/", 16, open_rate=50), Load("slow", "/compute", 16)),
        pinned=False,
    ),
    Workload(
        "idle",
        "10,000 idle keep-alive connections beside 64 on the 13-byte reply",
        "hello",
        (Load("hello", "/", 64, open_rate=2000),),
        idle_connections=10_000,
    ),
    Workload(
        "reply_64k",
        "64 KiB reply, 64 connections",
        "reply_sized",
        (Load("64 KiB", "/64", 64),),
        reply=None,
        reply_bytes=64 * 1024,
    ),
    Workload(
        "reply_1m",
        "1 MiB reply, 16 connections",
        "reply_sized",
        (Load("1 MiB", "/1024", 16),),
        reply=None,
        reply_bytes=1024 * 1024,
    ),
    Workload(
        "stream",
        "64 chunks of 1 KiB from a generator, 64 connections",
        "reply_chunks",
        (Load("chunks", "/", 64),),
        reply=None,
        reply_bytes=64 * 1024,
    ),
    Workload(
        "memory",
        "Memory after start and one request, hello",
        "hello",
        (),
        has_floor=True,
    ),
)


def spin_steps(milliseconds: float = 2.0) -> int:
    """Steps of the loop in applications/mixed.py that take so long here, nothing beside it.

    The quickest of several runs: whatever disturbs a run only makes it longer.
    """
    from applications.mixed import spin

    steps = 20_000
    quickest = min(timeit.repeat(lambda: spin(steps), number=1, repeat=50))
    return round(steps * milliseconds / 1000 / quickest)
