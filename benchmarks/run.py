"""Measures serve-zig beside its peers on this machine, and writes the table.

    python benchmarks/run.py [--servers a,b] [--workloads a,b] [--rounds N] [--seconds N]
                             [--pin workload|all|none] [--out benchmarks/results/latest]

Needs Linux, wrk and taskset; brings the peers: pip install -e '.[bench]'. A peer that is not
installed is left out, with a note. Everything is on the loopback interface, and everything started
is stopped again.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import plot
import report
from load import (
    Figures,
    LoadError,
    free_port,
    idle_connections,
    run_loads,
    wait_until_answering,
    wrk_version,
)
from peers import (
    FLOOR,
    ROOT,
    SERVE_ZIG,
    SERVERS,
    Server,
    Start,
    build_floor,
    core_build,
    environment,
    frameworks_missing,
    missing,
    version,
)
from process import Process
from results import Idle, Results, Sample
from workloads import HERE, WORKLOADS, Workload, spin_steps

WARM_UP_SECONDS = 1
SETTLE_SECONDS = 0.3
# Of the server, for its own files and for each connection a spare one.
DESCRIPTORS_SPARE = 500


@dataclass(frozen=True)
class Plan:
    servers: tuple[Server, ...]
    workloads: tuple[Workload, ...]
    rounds: int
    seconds: int
    scratch: Path
    environment: dict[str, str]
    # Both empty on a machine of one core, where there is nothing to pin apart.
    server_cores: tuple[int, ...]
    load_cores: tuple[int, ...]


def chosen(text: str, known: Sequence[str], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            sys.exit(f"run.py: no {what} is called {name!r}; there are: {', '.join(known)}")
    return [name for name in known if name in names]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__.split("\n")[0])
    parser.add_argument("--servers", default="", help="names, comma-separated; default: all")
    parser.add_argument("--workloads", default="", help="names, comma-separated; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of load for each measurement")
    parser.add_argument(
        "--pin",
        choices=("workload", "all", "none"),
        default="workload",
        help="server and wrk on a core each: where the workload says so, always, or never",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "results" / "latest",
        help="the report without its suffix: .md, .svg and .json are written",
    )
    parsed = parser.parse_args(arguments)
    if not 1 <= parsed.rounds <= 100 or not 1 <= parsed.seconds <= 600:
        parser.error("--rounds must be 1 to 100 and --seconds 1 to 600")
    return parsed


def measure(plan: Plan, server: Server, workload: Workload, turn: int) -> Sample:
    """One server under one workload: started, warmed up, loaded, stopped."""
    start = Start(workload, free_port(), plan.scratch)
    server_cores = plan.server_cores if workload.pinned else ()
    load_cores = plan.load_cores if workload.pinned else ()
    with Process(
        server.command(start),
        cores=server_cores,
        directory=ROOT,
        environment=plan.environment,
    ) as process:
        wait_until_answering(process, start.port, workload)
        time.sleep(SETTLE_SECONDS)
        at_start = process.memory()
        if not workload.loads:
            memory = (at_start.rss, at_start.pss)
            return Sample(server.name, workload.name, turn, {}, 0, *memory, *memory)
        run_loads(start.port, workload, WARM_UP_SECONDS, load_cores)
        if workload.idle_connections:
            loads, open_loads, cpu, idle = load_beside_idle(plan, process, start, load_cores)
        else:
            loads, cpu = load_once(plan, process, start, load_cores)
            open_loads = load_openly(plan, start, load_cores)
            idle = None
        after = process.memory()
        if not process.running:
            raise LoadError(f"ended under load: {process.log()}")
        return Sample(
            server.name,
            workload.name,
            turn,
            loads,
            cpu,
            at_start.rss,
            at_start.pss,
            after.rss,
            after.pss,
            idle,
            open_loads,
        )


def load_once(
    plan: Plan, process: Process, start: Start, cores: Sequence[int]
) -> tuple[dict[str, Figures], float]:
    """The figures of each load, and the microseconds of CPU for each request of them all."""
    before = process.cpu_seconds()
    loads = run_loads(start.port, start.workload, plan.seconds, cores)
    spent = process.cpu_seconds() - before
    requests = sum(figures.requests for figures in loads.values())
    if requests == 0:
        raise LoadError(f"answered nothing: {process.log()}")
    return loads, spent / requests * 1e6


def load_openly(plan: Plan, start: Start, cores: Sequence[int]) -> dict[str, Figures]:
    """The figures of the loads that have a fixed rate, at that rate; none where none has."""
    if all(load.open_rate is None for load in start.workload.loads):
        return {}
    return run_loads(start.port, start.workload, plan.seconds, cores, is_open=True)


def load_beside_idle(
    plan: Plan, process: Process, start: Start, cores: Sequence[int]
) -> tuple[dict[str, Figures], dict[str, Figures], float, Idle]:
    """The same load without and with idle connections, in one life of the server."""
    without, _ = load_once(plan, process, start, cores)
    openly_without = load_openly(plan, start, cores)
    before = process.memory()
    count = min(start.workload.idle_connections, descriptors() - DESCRIPTORS_SPARE)
    with idle_connections(start.port, count, cores) as client:
        if client.answered == 0:
            raise LoadError("answered none of the idle connections")
        time.sleep(SETTLE_SECONDS)
        grown = process.memory().rss - before.rss
        loads, cpu = load_once(plan, process, start, cores)
        open_loads = load_openly(plan, start, cores)
        name = start.workload.loads[0].name
        idle = Idle(
            answered=client.answered,
            still_open=client.still_open(),
            bytes_each=grown * 1024 / client.answered,
            before=without[name],
            open_before=openly_without[name],
        )
    return loads, open_loads, cpu, idle


def descriptors() -> int:
    """Raises the limit as far as it goes; servers and clients inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def run_workload(plan: Plan, workload: Workload, results: Results) -> None:
    lacking = frameworks_missing(workload)
    if lacking:
        results.notes.append(("all servers", workload.name, f"{lacking} is not installed"))
        return
    servers = [s for s in plan.servers if s.name != FLOOR or workload.has_floor]
    failed: set[str] = set()
    for turn in range(plan.rounds):
        shift = turn % len(servers) if servers else 0
        for server in servers[shift:] + servers[:shift]:
            if server.name in failed:
                continue
            try:
                sample = measure(plan, server, workload, turn)
            except LoadError as error:
                failed.add(server.name)
                results.notes.append((server.name, workload.name, str(error)))
                print(f"{workload.name:12} {server.name:18} {error}", flush=True)
                continue
            results.samples.append(sample)
            print(line(sample), flush=True)


def line(sample: Sample) -> str:
    """One sample for whoever watches."""
    parts = [f"{sample.workload:12} {sample.server:18}"]
    for name, figures in sample.loads.items():
        parts.append(
            f"{name} {figures.rate:,.0f}/s p50 {figures.p50:.2f} p99 {figures.p99:.2f} "
            f"p99.9 {figures.p999:.2f} ms" + (f" {figures.errors} errors" * (figures.errors > 0))
        )
    for name, figures in sample.open_loads.items():
        parts.append(f"at {figures.rate:,.0f}/s: {name} p99 {figures.p99:.2f} ms")
    if sample.loads:
        parts.append(f"{sample.cpu_microseconds:.1f} µs CPU")
    if sample.idle is not None:
        parts.append(f"{sample.idle.answered} idle, {sample.idle.bytes_each:,.0f} bytes each")
    parts.append(f"{sample.rss_load / 1024:.1f} MiB")
    return "; ".join(parts)


def machine_facts(plan: Plan, arguments: Sequence[str]) -> dict[str, str]:
    model = "unknown"
    for entry in Path("/proc/cpuinfo").read_text().splitlines():
        if entry.startswith("model name"):
            model = entry.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    distributions = dict.fromkeys(s.distribution for s in plan.servers if s.is_peer)
    names = [*distributions, *("gunicorn" for s in plan.servers if "gunicorn" in s.name)]
    versions = {name: version(name) for name in [*names, "flask", "django", "ziglang"]}
    facts = {
        "command": shlex.join(["python", "benchmarks/run.py", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "wrk": wrk_version(),
        "versions": ", ".join(f"{name} {text}" for name, text in versions.items() if text),
        "rounds": f"{plan.rounds} of {plan.seconds} s each",
    }
    if any(server.name == SERVE_ZIG for server in plan.servers):
        facts["serve-zig"] = ", ".join(filter(None, [core_build(), revision()]))
    return facts


def revision() -> str:
    if shutil.which("git") is None:
        return ""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return f"commit {described.stdout.strip()}" if described.returncode == 0 else ""


def available(names: Sequence[str], scratch: Path, results: Results) -> tuple[Server, ...]:
    """Those that can be started here; a note for each of the others."""
    servers = []
    for server in SERVERS:
        if server.name not in names:
            continue
        why = missing(server)
        if not why and server.name == FLOOR:
            why = build_floor(scratch)
        if why:
            results.notes.append((server.name, "", why))
            print(f"{server.name}: left out, {why}", flush=True)
        else:
            servers.append(server)
    return tuple(servers)


def make_plan(options: argparse.Namespace, scratch: Path, results: Results) -> Plan:
    names = chosen(options.servers, [server.name for server in SERVERS], "server")
    wanted = chosen(options.workloads, [workload.name for workload in WORKLOADS], "workload")
    workloads = tuple(workload for workload in WORKLOADS if workload.name in wanted)
    if options.pin != "workload":
        workloads = tuple(replace(each, pinned=options.pin == "all") for each in workloads)
    cores = sorted(os.sched_getaffinity(0))
    apart = len(cores) > 1
    return Plan(
        servers=available(names, scratch, results),
        workloads=workloads,
        rounds=options.rounds,
        seconds=options.seconds,
        scratch=scratch,
        environment=environment(spin_steps()),
        server_cores=(cores[0],) if apart else (),
        load_cores=(cores[1],) if apart else (),
    )


def write(results: Results, workloads: Sequence[Workload], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    plot_path = out.with_name(out.name + ".svg")
    plot_path.write_text(plot.draw(results, workloads))
    report_path = out.with_name(out.name + ".md")
    report_path.write_text(report.write(results, workloads, plot_path.name))
    results.write(out.with_name(out.name + ".json"))
    print(f"written: {report_path}", flush=True)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    for tool in ("wrk", "taskset"):
        if shutil.which(tool) is None:
            print(f"run.py: {tool} is not installed (Debian: apt install {tool_package(tool)})")
            return 2
    # Ended from outside, it still stops what it started and reports what it has.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    descriptors()
    results = Results(facts={})
    with tempfile.TemporaryDirectory(prefix="serve-zig-benchmark-") as scratch:
        plan = make_plan(options, Path(scratch), results)
        if not plan.servers:
            print("run.py: none of the servers can be started")
            return 2
        results.facts.update(machine_facts(plan, arguments))
        steps = plan.rounds * len(plan.servers) * len(plan.workloads)
        minutes = steps * (plan.seconds + WARM_UP_SECONDS + 1.5) / 60
        print(f"{steps} measurements, about {minutes:.0f} minutes", flush=True)
        try:
            for workload in plan.workloads:
                run_workload(plan, workload, results)
        except KeyboardInterrupt:
            print("interrupted: the report has what was measured until now", flush=True)
    if not results.samples:
        print("run.py: nothing was measured")
        return 1
    write(results, plan.workloads, options.out)
    return 0


def tool_package(tool: str) -> str:
    return {"taskset": "util-linux"}.get(tool, tool)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
