"""Handlers that block, compute, keep the GIL or look at the thread that they run on."""

import asyncio
import contextvars
import ctypes
import gc
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, ClassVar
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import events

PIECE_BYTES = 65536


class Calls:
    """Counts the calls of the application in progress."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.peak = 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.peak = max(self.peak, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


class Tally:
    """Counts by key; a Counter is not safe to add to from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[int] = Counter()

    def add(self, key: int) -> int:
        """Count one more and return how many there are."""
        with self._lock:
            self._counts[key] += 1
            return self._counts[key]

    def count(self, key: int) -> int:
        """Return how many there are."""
        with self._lock:
            return self._counts[key]


calls = Calls()
served = Tally()
turns = itertools.count()
finished = Tally()
local = threading.local()
seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="fresh")
shared = threading.Lock()
reentrant = threading.RLock()
changed = threading.Condition()
notes: list[str] = []
traced: Counter[str] = Counter()


class OwnBaseException(BaseException):
    """One that no `except Exception` catches and nobody has heard of."""


def answer_text(start_response: StartResponse, text: str) -> Iterable[bytes]:
    """Answer with a text."""
    body = text.encode("latin-1")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def answer_json(start_response: StartResponse, value: Any) -> Iterable[bytes]:
    """Answer with a value as JSON."""
    return answer_text(start_response, json.dumps(value))


def piece_of(value: Any) -> bytes:
    """Return a piece of a stream: a line of JSON, filled up to its size."""
    return json.dumps(value).encode("ascii").ljust(PIECE_BYTES - 1) + b"\n"


# What takes time


def fast(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer at once, with the query."""
    return answer_text(start_response, f"fast {environ['QUERY_STRING']}")


def gate(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Block until the test opens the gate in the query; what stands behind "&" is a mark."""
    query = environ["QUERY_STRING"]
    events.record("begun", query=query)
    events.wait_gate(query.partition("&")[0])
    return answer_text(start_response, f"gate {query}")


def sleep(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Block for so many seconds."""
    query = environ["QUERY_STRING"]
    time.sleep(float(query.partition("&")[0]))
    return answer_text(start_response, f"sleep {query}")


def spin(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Compute in Python for so many seconds."""
    query = environ["QUERY_STRING"]
    end = time.perf_counter() + float(query.partition("&")[0])
    while time.perf_counter() < end:
        pass
    return answer_text(start_response, f"spin {query}")


def spin_until(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Compute in Python until the test opens the gate in the query."""
    gate_path = events.FOLDER / f"gate-{environ['QUERY_STRING']}"
    events.record("begun", query=environ["QUERY_STRING"])
    while not gate_path.exists():
        for _ in range(20_000):
            pass
    return answer_text(start_response, "spun")


def block(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Block in one system call, without a look at the time, until the test ends it."""
    events.block(environ["QUERY_STRING"])
    return answer_text(start_response, "unblocked")


def hold(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Keep the GIL in C until the test ends it, as a careless extension does."""
    query = environ["QUERY_STRING"]
    events.hold_gil(query)
    events.record("done", query=query)
    return answer_text(start_response, "held")


def peak(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer how many calls were in progress at once, at most; count anew."""
    highest, calls.peak = calls.peak, 0
    return answer_json(start_response, highest)


def turn(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer how many calls of this there have been before, and take a moment."""
    number = next(turns)
    end = time.perf_counter() + 0.0005
    while time.perf_counter() < end:
        pass
    return answer_text(start_response, f"turn {number:6}")


def interval(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer the switch interval."""
    return answer_json(start_response, sys.getswitchinterval())


# What goes wrong


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "SystemExit without a code": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "MemoryError": MemoryError,
    "OSError": lambda: OSError(32, "of the application's own"),
    "OwnBaseException": OwnBaseException,
}


def failing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Raise the exception in the query, and leave a value in the context behind."""
    kind, _, where = environ["QUERY_STRING"].replace("+", " ").partition("&")
    seen.set("left behind by a failure")
    events.record("begun", query=environ["QUERY_STRING"])
    if where.startswith("generator"):
        return failing_stream(kind, start_response)
    if where.startswith("gate"):
        events.wait_gate(where)
    raise EXCEPTIONS[kind]()


def failing_stream(kind: str, start_response: StartResponse) -> Iterator[bytes]:
    """Raise after the first piece."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"first"
    raise EXCEPTIONS[kind]()


def deep(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Recurse without end: RecursionError."""
    return deep(environ, start_response)


def interrupted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Have KeyboardInterrupt raised in this thread from outside, as timeouts for threads do."""
    target = ctypes.c_ulong(threading.get_ident())
    ctypes.pythonapi.PyThreadState_SetAsyncExc(target, ctypes.py_object(KeyboardInterrupt))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pass
    return answer_text(start_response, "was not interrupted")


def forking(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Fork; the child ends at once without telling anybody."""
    child = os.fork()
    if child == 0:
        os._exit(7)
    _, status = os.waitpid(child, 0)
    return answer_json(start_response, os.waitstatus_to_exitcode(status))


def masking(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Block every signal in this thread and leave it so."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    return answer_text(start_response, "masked")


# Threads and contexts


def thread(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer which thread this is and what it remembers, after some seconds or at a gate."""
    query = environ["QUERY_STRING"]
    if query.startswith("gate"):
        events.record("begun", query=query)
        events.wait_gate(query)
    else:
        time.sleep(float(query or 0))
    current = threading.current_thread()
    local.count = getattr(local, "count", 0) + 1
    return answer_json(
        start_response,
        {
            "name": current.name,
            "type": f"{type(current).__module__}.{type(current).__qualname__}",
            "ident": threading.get_ident(),
            "native": threading.get_native_id(),
            "is_ident": current.ident == threading.get_ident(),
            "is_native": current.native_id == threading.get_native_id(),
            "is_listed": current in threading.enumerate(),
            "is_main": current is threading.main_thread(),
            "local": local.count,
            "counted": served.add(threading.get_ident()),
        },
    )


def context(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer what the context held, and leave the query in it."""
    found = seen.get()
    seen.set(environ["QUERY_STRING"])
    time.sleep(0.001)
    kept = seen.get() == environ["QUERY_STRING"]
    return answer_json(
        start_response, {"found": found, "kept": kept, "ident": threading.get_ident()}
    )


def stream(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Yield so many pieces that tell thread and context; "pieces&tag"."""
    pieces, _, tag = environ["QUERY_STRING"].partition("&")
    start_response("200 OK", [("Content-Type", "text/plain")])
    found = seen.get()
    events.record("begun", tag=tag)
    try:
        for number in range(int(pieces)):
            seen.set(f"{tag} {number}")
            yield piece_of(
                {
                    "number": number,
                    "found": found,
                    "kept": seen.get() == f"{tag} {number}",
                    "ident": threading.get_ident(),
                    "name": threading.current_thread().name,
                }
            )
            # After the client has taken what it was behind.
            if seen.get() != f"{tag} {number}":
                events.record("lost", tag=tag, number=number, seen=seen.get())
    finally:
        events.record("closed", tag=tag, seen=seen.get(), ident=threading.get_ident())


def database(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Stream rows from a connection that belongs to the thread (check_same_thread)."""
    rows = int(environ["QUERY_STRING"].partition("&")[0])
    connection = sqlite3.connect(":memory:", check_same_thread=True)
    connection.execute("create table pieces (number integer, data text)")
    connection.executemany(
        "insert into pieces values (?, ?)",
        ((number, "x" * PIECE_BYTES) for number in range(rows)),
    )
    start_response("200 OK", [("Content-Type", "text/plain")])
    try:
        for number, data in connection.execute("select number, data from pieces order by number"):
            yield b"%08d" % number + data.encode("ascii")[8:]
    finally:
        connection.close()
        events.record("closed", tag="database")


def trace(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer what the tracer has seen."""
    return answer_json(start_response, {"traced": traced, "active": sys.gettrace() is not None})


# Locks


def locking(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Hold a lock that all requests share while time passes."""
    with shared, reentrant:
        time.sleep(float(environ["QUERY_STRING"]))
        with reentrant:
            return answer_text(start_response, "locked")


def locked_stream(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Hold the shared lock over all pieces."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    with shared, reentrant:
        events.record("begun", tag="locked_stream")
        for number in range(int(environ["QUERY_STRING"])):
            yield piece_of({"number": number})
        events.record("unlocked")


def reentering(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer whether the lock that is the owner's to take again could be taken."""
    taken = reentrant.acquire(blocking=False)
    if taken:
        reentrant.release()
    return answer_json(start_response, taken)


def waiting(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Wait until another request leaves a note."""
    note = environ["QUERY_STRING"]
    events.record("begun", query=note)
    with changed:
        found = changed.wait_for(lambda: note in notes, timeout=120)
    return answer_json(start_response, found)


def notifying(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Leave a note."""
    with changed:
        notes.append(environ["QUERY_STRING"])
        changed.notify_all()
    return answer_text(start_response, "noted")


# What else an application does


def running_loop(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Run an event loop for this request alone."""

    async def one(number: int) -> int:
        await asyncio.sleep(0.001 * number)
        return number

    async def several() -> list[int]:
        return await asyncio.gather(*(one(number) for number in range(5)))

    return answer_json(start_response, asyncio.run(several()))


def child(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Start a process, look at its signals and end it by SIGTERM."""
    program = "import sys, time; print('up', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            began = process.stdout.readline().strip()
            masks = {}
            if sys.platform == "linux":
                with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
                    lines = [line.split() for line in file]
                masks = {line[0]: int(line[1], 16) for line in lines if line[0] == "SigBlk:"}
            process.terminate()
            status = process.wait(60)
        finally:
            process.kill()
    return answer_json(
        start_response, {"began": began, "blocked": masks.get("SigBlk:", 0), "status": status}
    )


def descriptors(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer what a process inherits that is started without any care."""
    program = "import json, os; print(json.dumps(os.listdir('/proc/self/fd')))"
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, close_fds=False
    )
    return answer_text(start_response, found.stdout.decode("ascii"))


def upload(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read the body and answer its length."""
    stream = environ["wsgi.input"]
    total = 0
    while data := stream.read(8192):
        total += len(data)
    return answer_json(start_response, total)


def listed(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a list of many pieces, some large."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [b"x" * 10_000 for _ in range(int(environ["QUERY_STRING"]))]


def spooled(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a file."""
    size = int(environ["QUERY_STRING"])
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the server
    file.write(b"f" * size)
    file.seek(0)
    start_response("200 OK", [("Content-Length", str(size))])
    return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]


def written(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer through `write`, after early hints."""
    environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload")])
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"written ")
    write(b"twice ")
    return [b"and returned"]


keepsake: list[object] = []


def keeping(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Keep all that the request gave, until the next one."""
    keepsake[:] = [environ, start_response, environ["wsgi.early_hints"]]
    return answer_text(start_response, "kept")


def suspending(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Wait without a thread for so many milliseconds, or until another thread resumes it."""
    milliseconds, _, how = environ["QUERY_STRING"].partition("&")
    start_response("200 OK", [("Content-Type", "text/plain")])
    try:
        yield b"begun "
        resume = environ["x-wsgiorg.suspend"](int(milliseconds))
        if how == "resumed":
            threading.Thread(target=resume).start()
        yield b""
        yield b"went on"
    finally:
        finished.add(0)


def count_finished(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer how many suspended responses are over."""
    return answer_json(start_response, finished.count(0))


class MallInfo(ctypes.Structure):
    """`struct mallinfo2` of the GNU C library: ten sizes."""

    _fields_: ClassVar[list[tuple[str, type[ctypes.c_size_t]]]] = [
        ("arena", ctypes.c_size_t),
        ("ordblks", ctypes.c_size_t),
        ("smblks", ctypes.c_size_t),
        ("hblks", ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),
        ("usmblks", ctypes.c_size_t),
        ("fsmblks", ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


def give_back_free_memory() -> None:
    """Let malloc return to the system what it keeps for later, so that resident memory is used."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def heap_bytes() -> int:
    """Return what malloc has given out, the core's memory included; 0 where it cannot be told."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = MallInfo
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def server_status() -> dict[str, int]:
    """Return `Server.status()`: the launcher has the server, in a variable of its main thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        server = frame.f_locals.get("server")
        if server is not None:
            return dict(server.status())
        frame = frame.f_back
    raise LookupError("the launcher's variable")


def numbers(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer what would grow if something were not given back."""
    gc.collect()
    give_back_free_memory()
    counted: dict[str, object] = {
        "app": app,
        "stderr": sys.stderr,
        "input": environ["wsgi.input"],
        "wrapper": environ["wsgi.file_wrapper"],
        "software": environ["SERVER_SOFTWARE"],
        "name": environ["SERVER_NAME"],
        "context": contextvars.Context,
        # From CPython 3.12 on these are immortal, and their counts stand still.
        "None": None,
        "True": True,
        "bytes": b"",
        "text": "",
    }
    return answer_json(
        start_response,
        {
            "blocks": sys.getallocatedblocks(),
            "objects": len(gc.get_objects()),
            "heap": heap_bytes(),
            "threads": threading.active_count(),
            "status": server_status(),
            "references": {name: sys.getrefcount(one) for name, one in counted.items()},
        },
    )


HANDLERS: tuple[WSGIApplication, ...] = (
    fast,
    gate,
    sleep,
    spin,
    spin_until,
    block,
    hold,
    turn,
    peak,
    interval,
    failing,
    deep,
    interrupted,
    forking,
    masking,
    thread,
    context,
    stream,
    database,
    trace,
    locking,
    locked_stream,
    reentering,
    waiting,
    notifying,
    running_loop,
    child,
    descriptors,
    upload,
    listed,
    spooled,
    written,
    keeping,
    suspending,
    count_finished,
    numbers,
)
ROUTES = {f"/{handler.__name__}": handler for handler in HANDLERS}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Hand over to the handler that the path names, counted while it is inside."""
    handler = ROUTES.get(environ["PATH_INFO"])
    if handler is None:
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
    with calls:
        return handler(environ, start_response)


def create_traced() -> WSGIApplication:
    """Return the application, traced as coverage does it: set before the threads start."""

    def tracer(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != __file__:
            return None
        traced[f"{event} {frame.f_code.co_name}"] += 1
        return tracer

    def profiler(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_filename == __file__ and event == "return":
            traced[f"profiled {frame.f_code.co_name}"] += 1

    threading.settrace(tracer)
    threading.setprofile(profiler)
    return app


def create_ticking() -> WSGIApplication:
    """Return the application beside a thread of its own that leaves a mark every 5 ms."""

    def tick() -> None:
        with open(events.FOLDER / "ticks", "ab", buffering=0) as file:
            while True:
                file.write(b".")
                time.sleep(0.005)

    threading.Thread(target=tick, name="ticker", daemon=True).start()
    return app
