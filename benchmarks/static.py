"""Measures static files of serve-zig beside nginx on this machine, and writes the table.

    python benchmarks/static.py [--files a,b] [--rounds N] [--seconds N]
                                [--out benchmarks/results/static]

Needs Linux, wrk, taskset and nginx (Debian: apt install wrk nginx-light). nginx gets one worker
process, sendfile and no access log. Everything is on the loopback interface, server and load on a
core each, and everything started is stopped again.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import http.client
import json
import os
import platform
import pwd
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from load import HOST, LoadError, finish_client, free_port, start_wrk, wrk_version
from peers import ROOT, core_build, environment
from process import Process
from run import SETTLE_SECONDS, WARM_UP_SECONDS, revision
from workloads import HERE, Load

SERVE_ZIG, NGINX = "serve-zig", "nginx"
SERVERS = (SERVE_ZIG, NGINX)
DOWNLOAD_SECONDS = 120


@dataclass(frozen=True)
class File:
    """A file and how it is asked for: by so many connections of wrk, or once; and the bar."""

    name: str
    title: str
    size: int
    connections: int
    # Of nginx's figure at least so much.
    bar: float | None = None

    @property
    def path(self) -> str:
        return f"/static/{self.name}"


FILES = (
    File("1k.png", "1 KiB, 32 connections", 1 << 10, 32),
    File("100k.png", "100 KiB, 32 connections", 100 << 10, 32, 0.9),
    File("1m.png", "1 MiB, 32 connections", 1 << 20, 32),
    # Both send it at the speed of the client's reading, so that rounds differ more than servers.
    File("1g.bin", "1 GiB, once", 1 << 30, 0, 0.95),
)


@dataclass(frozen=True)
class Sample:
    """`figure` is requests/s, or GB/s where the file is asked for once; `cpu` is of a request."""

    server: str
    file: str
    round: int
    figure: float
    cpu_microseconds: float
    errors: int


@dataclass
class Report:
    facts: dict[str, str]
    samples: list[Sample] = field(default_factory=list)

    def values(self, file: File, server: str, read: Callable[[Sample], float]) -> list[float]:
        return [read(s) for s in self.samples if s.file == file.name and s.server == server]

    def ratio(self, file: File) -> float | None:
        """The median of the ratios of each round, in which one followed the other."""
        by_round: dict[int, dict[str, float]] = {}
        for sample in self.samples:
            if sample.file == file.name:
                by_round.setdefault(sample.round, {})[sample.server] = sample.figure
        ratios = [r[SERVE_ZIG] / r[NGINX] for r in by_round.values() if len(r) == len(SERVERS)]
        return statistics.median(ratios) if ratios else None


def serve_zig_command(scratch: Path, port: int) -> list[str]:
    config = scratch / "serve.toml"
    config.write_text(
        f'[app]\ntarget = "benchmarks.applications.hello:app"\ndirectory = "{ROOT}"\n'
        f'[listen]\nbind = "{HOST}:{port}"\n'
        '[[static]]\nroute = "/static"\ndirectory = "files"\n'
    )
    return [sys.executable, "-m", "serve_zig", "-c", str(config)]


def nginx_command(scratch: Path, port: int) -> list[str]:
    config = scratch / "nginx.conf"
    # Started by root, the worker would be somebody who cannot read the files.
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    temporary = " ".join(
        f"{name}_temp_path {scratch}/nginx-{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"{user} worker_processes 1; daemon off; pid {scratch}/nginx.pid; error_log stderr;\n"
        "events { worker_connections 1024; }\n"
        "http { types { image/png png; application/octet-stream bin; }\n"
        "  access_log off; sendfile on; keepalive_timeout 75; keepalive_requests 1000000000;\n"
        f"  {temporary}\n"
        f"  server {{ listen {HOST}:{port}; location /static/ {{ alias {scratch}/files/; }} }}\n"
        "}\n"
    )
    return ["nginx", "-p", str(scratch), "-c", str(config)]


COMMANDS = {SERVE_ZIG: serve_zig_command, NGINX: nginx_command}


def make_files(folder: Path, files: Sequence[File]) -> None:
    folder.mkdir()
    for file in files:
        with open(folder / file.name, "wb") as target:
            if file.size <= 1 << 24:
                target.write(os.urandom(file.size))
            # A larger one is a hole: the page cache is filled from it as from any other.
            target.truncate(file.size)


def wait_until_serving(process: Process, port: int, file: File, content: Path) -> None:
    """Both answer with the whole file, before anything is measured."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with closing(http.client.HTTPConnection(HOST, port, timeout=30)) as connection:
                connection.request("HEAD" if file.size > 1 << 24 else "GET", file.path)
                reply = connection.getresponse()
                body = reply.read()
            break
        except (OSError, http.client.HTTPException) as error:
            if not process.running or time.monotonic() > deadline:
                raise LoadError(f"does not answer: {error!r} {process.log()}") from None
            time.sleep(0.05)
    length = int(reply.headers["Content-Length"])
    if reply.status != 200 or length != file.size:
        raise LoadError(f"answers {reply.status} with {length} bytes: {process.log()}")
    if body and body != content.read_bytes():
        raise LoadError("answers with other bytes than the file's")


def download(port: int, file: File, cores: Sequence[int]) -> float:
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    finished = subprocess.run(
        [*pinned, sys.executable, str(HERE / "download.py"), str(port), file.path, str(file.size)],
        capture_output=True,
        text=True,
        timeout=DOWNLOAD_SECONDS,
    )
    if finished.returncode != 0:
        raise LoadError(f"the download failed: {finished.stderr.strip()[-300:]}")
    result = json.loads(finished.stdout)
    if result["status"] != 200:
        raise LoadError(f"answers {result['status']}")
    return float(result["seconds"])


def measure(
    server: str,
    file: File,
    turn: int,
    seconds: int,
    scratch: Path,
    cores: tuple[Sequence[int], Sequence[int]],
) -> Sample:
    """One server with one file: started, warmed up, loaded, stopped."""
    port = free_port()
    server_cores, load_cores = cores
    with Process(
        COMMANDS[server](scratch, port),
        cores=server_cores,
        directory=ROOT,
        environment=environment(0),
    ) as process:
        wait_until_serving(process, port, file, scratch / "files" / file.name)
        time.sleep(SETTLE_SECONDS)
        if file.connections == 0:
            download(port, file, load_cores)
            before = process.cpu_seconds()
            took = download(port, file, load_cores)
            cpu = (process.cpu_seconds() - before) * 1e6
            return Sample(server, file.name, turn, file.size / took / 1e9, cpu, 0)
        load = Load("static", file.path, file.connections)
        finish_client(start_wrk(port, load, WARM_UP_SECONDS, load_cores), WARM_UP_SECONDS)
        before = process.cpu_seconds()
        figures = finish_client(start_wrk(port, load, seconds, load_cores), seconds)
        spent = process.cpu_seconds() - before
        if figures.requests == 0:
            raise LoadError(f"answered nothing: {process.log()}")
        cpu = spent / figures.requests * 1e6
        return Sample(server, file.name, turn, figures.rate, cpu, figures.errors)


def line(sample: Sample) -> str:
    return (
        f"{sample.file:9} {sample.server:10} {sample.figure:12,.2f} "
        f"{sample.cpu_microseconds:12,.1f} µs CPU, {sample.errors} errors"
    )


def facts_of(arguments: Sequence[str], options: argparse.Namespace) -> dict[str, str]:
    model = next(
        (
            text.partition(":")[2].strip()
            for text in Path("/proc/cpuinfo").read_text().splitlines()
            if text.startswith("model name")
        ),
        "unknown",
    )
    nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return {
        "command": shlex.join(["python", "benchmarks/static.py", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "wrk": wrk_version(),
        "nginx": (nginx.stderr or nginx.stdout).strip().rpartition("/")[2],
        "rounds": f"{options.rounds} of {options.seconds} s each",
        "serve-zig": ", ".join(filter(None, [core_build(), revision()])),
    }


INTRODUCTION = """\
Both servers answer the same files from the page cache. Each is started anew for each file and
round, answers one request that is checked, is loaded for a second to warm up (the large file is
taken once) and then measured; one follows the other, and the order changes from round to round.
Figures are medians over the rounds, beside the lowest and the highest. The ratio is the median of
the ratios of each round. CPU is user and system time of the server's processes for each request.
nginx has one worker process, `sendfile on` and no access log; serve-zig its defaults.
"""


def write_markdown(report: Report, files: Sequence[File]) -> str:
    rows = ["# Static files", "", "```", report.facts["command"], "```", "", "|  |  |"]
    rows += ["| --- | --- |"]
    rows += [f"| {name} | {text} |" for name, text in report.facts.items() if name != "command"]
    rows += ["", INTRODUCTION]
    rows += ["| file | bar | serve-zig to nginx |  |", "| --- | --- | ---: | --- |"]
    for file in files:
        ratio = report.ratio(file)
        shown = "-" if ratio is None else f"{ratio:.2f}"
        verdict = "" if file.bar is None else "not measured" if ratio is None else "met"
        if file.bar is not None and ratio is not None and ratio < file.bar:
            verdict = "**missed**"
        bar = f"at least {file.bar:.2f}" if file.bar is not None else "none"
        rows.append(f"| {file.title} | {bar} | {shown} | {verdict} |")
    for file in files:
        unit = "GB/s" if file.connections == 0 else "requests/s"
        rows += ["", f"## {file.title}", ""]
        rows += [f"| server | {unit} | lowest to highest | CPU a request | errors |"]
        rows += ["| --- | ---: | ---: | ---: | ---: |"]
        for server in SERVERS:
            figures = report.values(file, server, lambda sample: sample.figure)
            if not figures:
                continue
            cpu = statistics.median(report.values(file, server, lambda s: s.cpu_microseconds))
            errors = sum(report.values(file, server, lambda sample: sample.errors))
            digits = 2 if file.connections == 0 else 0
            low, middle, high = (
                f"{value:,.{digits}f}"
                for value in (min(figures), statistics.median(figures), max(figures))
            )
            cpu_text = f"{cpu:,.1f} µs" if cpu < 10_000 else f"{cpu / 1000:,.0f} ms"
            rows.append(f"| {server} | {middle} | {low} to {high} | {cpu_text} | {errors:g} |")
    return "\n".join([*rows, ""])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/static.py", description=(__doc__ or "").split("\n")[0]
    )
    names = [file.name for file in FILES]
    parser.add_argument("--files", default=",".join(names), help="names, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of load for each measurement")
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "results" / "static",
        help="the report without its suffix: .md and .json are written",
    )
    parsed = parser.parse_args(arguments)
    if not 1 <= parsed.rounds <= 100 or not 1 <= parsed.seconds <= 600:
        parser.error("--rounds must be 1 to 100 and --seconds 1 to 600")
    wanted = [name.strip() for name in parsed.files.split(",")]
    for name in wanted:
        if name not in names:
            parser.error(f"no file is called {name!r}; there are: {', '.join(names)}")
    parsed.files = tuple(file for file in FILES if file.name in wanted)
    return parsed


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    for tool, package in (("wrk", "wrk"), ("taskset", "util-linux"), ("nginx", "nginx-light")):
        if shutil.which(tool) is None:
            print(f"static.py: {tool} is not installed (Debian: apt install {package})")
            return 2
    # Ended from outside, it still stops what it started and reports what it has.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    available = sorted(os.sched_getaffinity(0))
    cores = ((available[0],), (available[1],)) if len(available) > 1 else ((), ())
    report = Report(facts_of(arguments, options))
    with tempfile.TemporaryDirectory(prefix="serve-zig-static-") as scratch:
        make_files(Path(scratch) / "files", options.files)
        try:
            for file in options.files:
                for turn in range(options.rounds):
                    order = SERVERS if turn % 2 == 0 else SERVERS[::-1]
                    for server in order:
                        sample = measure(server, file, turn, options.seconds, Path(scratch), cores)
                        report.samples.append(sample)
                        print(line(sample), flush=True)
        except LoadError as error:
            print(f"static.py: {error}")
            return 1
        except KeyboardInterrupt:
            print("interrupted: the report has what was measured until now", flush=True)
    if not report.samples:
        print("static.py: nothing was measured")
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report_path = options.out.with_name(options.out.name + ".md")
    report_path.write_text(write_markdown(report, options.files))
    data = json.dumps(dataclasses.asdict(report), indent=1) + "\n"
    options.out.with_name(options.out.name + ".json").write_text(data)
    print(f"written: {report_path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
