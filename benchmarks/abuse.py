"""Measures what abusive clients cost the others: the 13-byte workload with and without them.

    python benchmarks/abuse.py [--attacks a,b] [--rounds N] [--seconds N] [--connections N]
                               [--out benchmarks/results/abuse]

Needs Linux, wrk and taskset, and slowhttptest (Debian) for the attacks named after it. The server
is held on the first core; wrk and the attack share the second. In each round the workload is
measured alone and then beside the attack; figures are medians over the rounds. slowhttptest takes
much of the core that wrk needs, so it is measured once more as it attacks another server: what the
workload loses there, no server can keep.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from load import (
    HOST,
    Figures,
    LoadError,
    finish_client,
    free_port,
    pinned,
    start_wrk,
    wait_until_answering,
    wrk_version,
)
from peers import ROOT, core_build, environment, python
from process import Process
from report import table
from run import descriptors, revision
from workloads import HERE, Load, Workload

RATE_KEPT_MIN = 0.80
P99_MS_MAX = 10.0
SERVER_CORES = (0,)
LOAD_CORES = (1,)
HELLO = Workload("abuse", "13-byte reply", "abused", (Load("hello", "/", 64),))
WARM_UP_SECONDS = 1
READY_SECONDS = 60


@dataclass(frozen=True)
class Attack:
    name: str
    title: str
    #: Arguments of attack.py, or of slowhttptest, where {} is the number of slow connections.
    arguments: tuple[str, ...]
    tool: str = "attack.py"

    @property
    def has_control(self) -> bool:
        """Whether it is also measured as it attacks another server."""
        return self.tool == "slowhttptest"


ATTACKS = (
    Attack("slow heads", "{} heads, one field line every 2 s each", ("slow_heads", "{}")),
    Attack("slow bodies", "{} bodies, one byte every 2 s each", ("slow_bodies", "{}")),
    Attack("slow readers", "{} readers of 1 MiB, 512 bytes every 2 s each", ("slow_readers", "{}")),
    Attack("stalled readers", "{} that ask for 1 MiB and read nothing", ("stalled_readers", "{}")),
    Attack(
        "slowhttptest -H",
        "its slow heads, {} connections",
        ("-H", "-c", "{}", "-i", "2", "-r", "2000"),
        "slowhttptest",
    ),
    Attack(
        "slowhttptest -B",
        "its slow bodies, {} connections",
        ("-B", "-c", "{}", "-i", "2", "-r", "2000", "-s", "8192"),
        "slowhttptest",
    ),
    Attack(
        "slowhttptest -X",
        "its slow readers, {} connections",
        *(("-X", "-c", "{}", "-n", "1", "-r", "2000", "-w", "512", "-y", "1024", "-z", "32"),),
        "slowhttptest",
    ),
    Attack(
        "new connections",
        "1,000 new connections a second, a request each",
        ("new_connections", "1000"),
    ),
    Attack("pipeline", "one client that pipelines all that is taken", ("pipeline", "1")),
    Attack(
        "same fields",
        "50 heads of 60 KiB a second, one field name 98 times",
        ("same_fields", "50"),
    ),
    Attack(
        "new fields",
        "50 heads of 60 KiB a second, 98 names that come but once",
        ("new_fields", "50"),
    ),
)


@dataclass(frozen=True)
class Sample:
    """One round of one attack."""

    attack: str
    alone: Figures
    beside: Figures
    #: The workload while the same attack is on another server.
    control: Figures | None
    #: Microseconds of the server for each request of the workload, the attack's work included.
    alone_cpu: float
    beside_cpu: float
    #: How many of wrk and attack together were busy, in cores.
    load_cores: float
    #: What the attack did; empty for slowhttptest.
    done: dict[str, float]

    @property
    def server_cores(self) -> float:
        """How much of its core the server was busy, beside the attack."""
        return self.beside.rate * self.beside_cpu / 1e6

    @property
    def kept(self) -> float:
        return self.beside.rate / self.alone.rate

    @property
    def kept_of_control(self) -> float | None:
        return self.beside.rate / self.control.rate if self.control else None


@contextlib.contextmanager
def server(cores: Sequence[int] = SERVER_CORES) -> Iterator[tuple[Process, int]]:
    """serve-zig with its defaults, ready."""
    port = free_port()
    lines = [
        "[app]",
        f"target = {json.dumps(HELLO.target)}",
        f"directory = {json.dumps(str(ROOT))}",
        "[listen]",
        f'bind = "{HOST}:{port}"',
        "[timeouts]",
        "drain = 0.5",
    ]
    with tempfile.TemporaryDirectory(prefix="serve-zig-abuse-") as scratch:
        config = Path(scratch) / "serve.toml"
        config.write_text("\n".join(lines) + "\n")
        command = python("-m", "serve_zig", "-c", str(config))
        with Process(command, cores=cores, directory=ROOT, environment=environment(0)) as process:
            wait_until_answering(process, port, HELLO)
            yield process, port


class Attacker:
    """The process of an attack."""

    def __init__(self, attack: Attack, port: int, connections: int, seconds: int) -> None:
        arguments = [argument.format(connections) for argument in attack.arguments]
        if attack.tool == "slowhttptest":
            url = f"http://{HOST}:{port}/" + ("large" if "-X" in arguments else "")
            command = [attack.tool, *arguments, "-l", str(seconds), "-v", "0", "-u", url]
            output = subprocess.DEVNULL
        else:
            kind, count = arguments
            command = [sys.executable, str(HERE / attack.tool), kind, str(port), count]
            output = subprocess.PIPE
        self._child = subprocess.Popen(
            [*pinned(LOAD_CORES), *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def wait_ready(self, process: Process, connections: int) -> None:
        """Until it is at work; slowhttptest does not say so, but its connections can be counted."""
        if self._child.stdout is not None:
            if self._child.stdout.readline() != "ready\n":
                raise LoadError("the attack failed to begin")
            return
        deadline = time.monotonic() + READY_SECONDS
        while open_sockets(process) < connections * 0.9:
            if self._child.poll() is not None:
                raise LoadError("slowhttptest ended early")
            if time.monotonic() > deadline:
                raise LoadError(f"slowhttptest opened only {open_sockets(process)} connections")
            time.sleep(0.2)

    def stop(self) -> dict[str, float]:
        if self._child.stdout is None:
            self._child.terminate()
        try:
            output, _ = self._child.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            output, _ = self._child.communicate()
        lines = (output or "").splitlines()
        done: dict[str, float] = json.loads(lines[-1]) if lines else {}
        return done


def open_sockets(process: Process) -> int:
    """Descriptors of the server."""
    total = 0
    for pid in process.tree():
        with contextlib.suppress(OSError):
            total += len(os.listdir(f"/proc/{pid}/fd"))
    return total


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def load_hello(port: int, seconds: int) -> Figures:
    return finish_client(start_wrk(port, HELLO.loads[0], seconds, LOAD_CORES), seconds)


@dataclass(frozen=True)
class Measured:
    """The workload beside an attack."""

    figures: Figures
    cpu: float
    load_cores: float
    done: dict[str, float]


def measure(process: Process, port: int, attack: Attack, options: argparse.Namespace) -> Sample:
    """One round: alone, beside the attack, and beside the attack on another server."""
    alone, alone_cpu = load_and_cpu(process, port, options.seconds)
    beside = measure_beside(process, port, attack, (process, port), options)
    control = None
    if attack.has_control:
        # On the core of the load: it is to take nothing of the core of the server.
        with server(LOAD_CORES) as other:
            control = measure_beside(process, port, attack, other, options).figures
    return Sample(
        attack.name,
        alone,
        beside.figures,
        control,
        alone_cpu,
        beside.cpu,
        beside.load_cores,
        beside.done,
    )


def measure_beside(
    process: Process,
    port: int,
    attack: Attack,
    attacked: tuple[Process, int],
    options: argparse.Namespace,
) -> Measured:
    children_before = children_cpu()
    attacker = Attacker(attack, attacked[1], options.connections, options.seconds + READY_SECONDS)
    done: dict[str, float] = {}
    try:
        attacker.wait_ready(attacked[0], options.connections)
        began = time.monotonic()
        figures, cpu = load_and_cpu(process, port, options.seconds)
        elapsed = time.monotonic() - began
    finally:
        done = attacker.stop()
    if not process.running:
        raise LoadError(f"the server ended under attack: {process.log()}")
    load_cores = (children_cpu() - children_before) / elapsed
    wait_until_calm(attacked[0])
    return Measured(figures, cpu, load_cores, done)


def load_and_cpu(process: Process, port: int, seconds: int) -> tuple[Figures, float]:
    before = process.cpu_seconds()
    figures = load_hello(port, seconds)
    if figures.requests == 0:
        raise LoadError(f"answered nothing: {process.log()}")
    return figures, (process.cpu_seconds() - before) / figures.requests * 1e6


def wait_until_calm(process: Process) -> None:
    """The attack's connections are closed, and the server rests."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        before = process.cpu_seconds()
        time.sleep(0.3)
        if process.cpu_seconds() - before < 0.02 and open_sockets(process) < 100:
            return


# ---- The report ----------------------------------------------------------------------------------


def median(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> float:
    return statistics.median(figure(sample) for sample in samples)


def is_met(samples: Sequence[Sample]) -> bool:
    kept = median(samples, lambda sample: sample.kept)
    return kept >= RATE_KEPT_MIN and median(samples, lambda s: s.beside.p99) < P99_MS_MAX


def control_text(samples: Sequence[Sample]) -> str:
    kept = [sample.kept_of_control for sample in samples if sample.kept_of_control is not None]
    return f"{statistics.median(kept):.2f}" if kept else ""


def row(title: str, samples: Sequence[Sample]) -> list[str]:
    return [
        samples[0].attack,
        title,
        f"{median(samples, lambda s: s.alone.rate):,.0f}",
        f"{median(samples, lambda s: s.beside.rate):,.0f}",
        f"{median(samples, lambda s: s.kept):.2f}",
        f"{min(s.kept for s in samples):.2f} … {max(s.kept for s in samples):.2f}",
        f"{median(samples, lambda s: s.alone.p99):.2f}",
        f"{median(samples, lambda s: s.beside.p99):.2f}",
        str(sum(sample.beside.errors for sample in samples)),
        f"{median(samples, lambda s: s.alone_cpu):.1f}",
        f"{median(samples, lambda s: s.beside_cpu):.1f}",
        f"{median(samples, lambda s: s.server_cores):.0%}",
        control_text(samples),
        "met" if is_met(samples) else "**missed**",
    ]


HEADS = (
    *("attack", "what it does", "requests/s alone", "beside it", "kept", "lowest … highest"),
    *("p99 ms alone", "beside it", "errors", "CPU µs/request alone", "beside it"),
    *("server's core busy", "kept of the control", ""),
)

METHOD = f"""\
The server has its defaults and one core; wrk (64 keep-alive connections on the 13-byte reply) and
the attack share another. Each round measures the workload alone and then beside the attack, on the
same server; figures are medians over the rounds. The bars: at least {RATE_KEPT_MIN:.0%} of the
throughput is kept, and the p99 beside the attack is under {P99_MS_MAX:g} ms. CPU is the server's
for each request of the workload, with what the attack costs it. How busy the server's core is, is
beside the attack: where it has time left, wrk was short of its own core, which the attack shares.
The control is the same workload on the same server while slowhttptest attacks another one, which
rests on the core of wrk: what is lost there is lost to the tool, whatever the server does. The bar
is judged without it.
"""


def write(out: Path, facts: dict[str, str], titles: dict[str, str], samples: list[Sample]) -> None:
    rows = []
    for name, title in titles.items():
        own = [sample for sample in samples if sample.attack == name]
        if own:
            rows.append(row(title, own))
    lines = ["# Abuse", "", "```", facts["command"], "```", ""]
    lines += table(("", ""), [[k, v] for k, v in facts.items() if k != "command"], 2)
    lines += ["", METHOD, *table(HEADS, rows, 2)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(out.name + ".md").write_text("\n".join(lines) + "\n")
    content = {"facts": facts, "samples": [dataclasses.asdict(sample) for sample in samples]}
    out.with_name(out.name + ".json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {out.with_name(out.name + '.md')}", flush=True)


def facts_of(options: argparse.Namespace) -> dict[str, str]:
    model = "unknown"
    for entry in Path("/proc/cpuinfo").read_text().splitlines():
        if entry.startswith("model name"):
            model = entry.partition(":")[2].strip()
            break
    return {
        "command": f"python benchmarks/abuse.py --rounds {options.rounds} "
        f"--seconds {options.seconds} --connections {options.connections}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "wrk": wrk_version(),
        "serve-zig": ", ".join(filter(None, [core_build(), revision()])),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/abuse.py", description=__doc__)
    parser.add_argument("--attacks", default="", help="names, comma-separated; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of load for each measurement")
    parser.add_argument("--connections", type=int, default=5000, help="of the slow attacks")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "abuse")
    parsed = parser.parse_args(arguments)
    names = [attack.name for attack in ATTACKS]
    parsed.attacks = [name.strip() for name in parsed.attacks.split(",") if name.strip()] or names
    for name in parsed.attacks:
        if name not in names:
            parser.error(f"no attack is called {name!r}; there are: {', '.join(names)}")
    return parsed


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    for tool in ("wrk", "taskset"):
        if shutil.which(tool) is None:
            print(f"abuse.py: {tool} is not installed")
            return 2
    if len(os.sched_getaffinity(0)) < 2:
        print("abuse.py: server and attack need a core each")
        return 2
    descriptors()
    samples: list[Sample] = []
    titles: dict[str, str] = {}
    for attack in ATTACKS:
        if attack.name not in options.attacks:
            continue
        if attack.tool == "slowhttptest" and shutil.which(attack.tool) is None:
            print(f"{attack.name}: left out, slowhttptest is not installed", flush=True)
            continue
        titles[attack.name] = attack.title.format(f"{options.connections:,}")
        try:
            with server() as (process, port):
                load_hello(port, WARM_UP_SECONDS)
                for _ in range(options.rounds):
                    samples.append(measure(process, port, attack, options))
                    print(line(samples[-1]), flush=True)
        except LoadError as error:
            print(f"{attack.name}: {error}", flush=True)
    if not samples:
        print("abuse.py: nothing was measured")
        return 1
    write(options.out, facts_of(options), titles, samples)
    return 0


def line(sample: Sample) -> str:
    """One round for whoever watches."""
    return (
        f"{sample.attack:16} {sample.alone.rate:,.0f} → {sample.beside.rate:,.0f}/s "
        f"({sample.kept:.2f}), p99 {sample.alone.p99:.2f} → {sample.beside.p99:.2f} ms, "
        f"{sample.beside.errors} errors, CPU {sample.alone_cpu:.1f} → {sample.beside_cpu:.1f} µs, "
        f"load {sample.load_cores:.2f} cores, of the control {control_text([sample]) or '-'}, "
        f"{sample.done}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
