"""Writes what was measured as Markdown: the bars first, then a table for each workload."""

from __future__ import annotations

from collections.abc import Sequence

from bars import all_bars
from peers import FLOOR, SERVERS
from results import Results, Rounds, Sample
from workloads import Load, Workload


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> list[str]:
    rule = ["---" if index < numbers_from else "---:" for index in range(len(heads))]
    return ["| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows)]


def ratio(own: float | None, other: float | None) -> str:
    return f"{own / other:.2f}" if own is not None and other else "-"


def spread(values: Sequence[float], digits: int) -> str:
    """From the smallest to the largest round."""
    return f"{min(values):,.{digits}f} … {max(values):,.{digits}f}"


def load_rows(results: Results, workload: Workload, load: Load) -> list[list[str]]:
    name = workload.name
    peers = [server.name for server in SERVERS if server.is_peer]

    def rates(server: str) -> Rounds | None:
        return results.rounds(name, server, lambda s: s.loads[load.name].rate)

    def cpus(server: str) -> Rounds | None:
        return results.rounds(name, server, lambda s: s.cpu_microseconds)

    best = results.best(name, peers, rates)
    bjoern, floor = results.cpu(name, "bjoern"), results.cpu(name, FLOOR)
    best_cpu = results.best(name, peers, cpus, min)
    rows = []
    for server in results.servers(name):
        samples = results.rows(name, server)
        rate, cpu = results.rate(name, server, load.name), results.cpu(name, server)
        latencies = [
            results.median(name, server, lambda s: s.loads[load.name].p50),
            results.median(name, server, lambda s: s.loads[load.name].p99),
            results.median(name, server, lambda s: s.loads[load.name].p999),
        ]
        if load.open_rate is not None:
            latencies.append(results.p99(name, server, load.name))
        rows.append(
            [
                server,
                f"{rate:,.0f}" if rate is not None else "-",
                spread([sample.loads[load.name].rate for sample in samples], 0),
                ratio(rate, best.median if best else None),
                f"{cpu:.1f}" if cpu is not None else "-",
                ratio(cpu, bjoern),
                ratio(cpu, best_cpu.median if best_cpu else None),
                ratio(cpu, floor),
                *(f"{value:.2f}" if value is not None else "-" for value in latencies),
                str(sum(sample.loads[load.name].errors for sample in samples)),
            ]
        )
    return rows


LOAD_HEADS = (
    *("server", "requests/s", "lowest … highest", "rate to best peer", "CPU µs/request"),
    *(
        "CPU to bjoern",
        "CPU to best peer",
        "CPU to floor",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "errors",
    ),
)

IDLE_HEADS = (
    *("server", "opened", "open at the end", "bytes each (RSS)"),
    *("requests/s without → with", "p99 ms without → with"),
)


def load_heads(load: Load) -> tuple[str, ...]:
    if load.open_rate is None:
        return LOAD_HEADS
    place = LOAD_HEADS.index("errors")
    return (*LOAD_HEADS[:place], f"p99 ms at {load.open_rate:,.0f}/s", *LOAD_HEADS[place:])


def mib(results: Results, workload: str, server: str, field: str) -> str:
    def read(sample: Sample) -> float:
        value: int = getattr(sample, field)
        return value / 1024

    value = results.median(workload, server, read)
    return f"{value:.1f}" if value is not None else "-"


def memory_rows(results: Results, workload: str, loaded: bool) -> list[list[str]]:
    fields = ["rss_start", "pss_start"] + (["rss_load", "pss_load"] if loaded else [])
    return [
        [server, *(mib(results, workload, server, field) for field in fields)]
        for server in results.servers(workload)
    ]


def idle_rows(results: Results) -> list[list[str]]:
    rows = []
    for server in results.servers("idle"):
        samples = [row for row in results.rows("idle", server) if row.idle is not None]
        each = results.median("idle", server, lambda s: s.idle.bytes_each if s.idle else 0)
        before_rate = results.median("idle", server, lambda s: s.idle.before.rate if s.idle else 0)
        before_p99 = results.median(
            "idle", server, lambda s: s.idle.open_before.p99 if s.idle else 0
        )
        rate, p99 = results.rate("idle", server, "hello"), results.p99("idle", server, "hello")
        rows.append(
            [
                server,
                f"{min(row.idle.answered for row in samples if row.idle):,}",
                f"{min(row.idle.still_open for row in samples if row.idle):,}",
                f"{each:,.0f}",
                f"{before_rate:,.0f} → {rate:,.0f}",
                f"{before_p99:.2f} → {p99:.2f}",
            ]
        )
    return rows


def workload_section(results: Results, workload: Workload) -> list[str]:
    if not results.servers(workload.name):
        return []
    cores = "server on one core, wrk on another" if workload.pinned else "two cores for both"
    lines = [f"### {workload.name}: {workload.title}", ""]
    if workload.loads:
        lines += [f"{cores[0].upper()}{cores[1:]}; threads = {workload.threads}.", ""]
    for load in workload.loads:
        if len(workload.loads) > 1:
            lines += [f"The {load.name} requests (CPU is of both loads together):", ""]
        lines += [*table(load_heads(load), load_rows(results, workload, load)), ""]
    if workload.idle_connections:
        lines += [*table(IDLE_HEADS, idle_rows(results)), ""]
    heads = ["server", "RSS MiB after start", "PSS after start"]
    if workload.loads:
        heads += ["RSS after load", "PSS after load"]
        lines += ["<details><summary>Memory</summary>", ""]
    lines += [*table(heads, memory_rows(results, workload.name, bool(workload.loads))), ""]
    if workload.loads:
        lines += ["</details>", ""]
    return lines


def bars_section(results: Results) -> list[str]:
    rows = [[bar.workload, bar.text, bar.figure or "-", bar.verdict] for bar in all_bars(results)]
    return ["## The bars", "", *table(("workload", "bar", "figure", ""), rows, 4), ""]


METHOD = """\
Every server is started anew for each workload and round, answers one request that is checked, is
loaded for a second to warm up, and then measured; within a round one server follows another, and
the order rotates from round to round. Figures are medians over the rounds, beside the lowest and
the highest of the rates. CPU is user and system time of the server's whole process tree
(/proc/PID/stat) divided by the requests that wrk counted. A peer that failed more than 0.1 % of
its requests is not taken for the best one. Latencies are wrk's; those of a load that got no answer
at all are the length of the run. What is in flight when wrk stops is not counted, which takes up
to one request a connection off each run. Errors are connection and read errors, time-outs (2 s)
and replies other than 2xx and 3xx together.

wrk waits for each answer before it asks again, so that its percentiles lack what it did not send
while the server stood still. The bars on p99 are of a second run at a fixed rate
(open_loop.py), in which each latency is counted from when the request was due. A figure within
5 % of its bar says something only if the rounds differ by more than chance: beside it stands the
p-value of the Mann-Whitney U test over the rounds, and without significance the bar counts as
not decided.
"""


def write(results: Results, workloads: Sequence[Workload], plot_name: str) -> str:
    lines = ["# Benchmark", "", "```", results.facts["command"], "```", ""]
    facts = [[name, text] for name, text in results.facts.items() if name != "command"]
    lines += [*table(("", ""), facts, 2), ""]
    lines += [METHOD, f"![Bars for each workload]({plot_name})", ""]
    lines += [*bars_section(results), "## Figures", ""]
    for workload in workloads:
        lines += workload_section(results, workload)
    measured = {sample.server for sample in results.samples}
    settings = [[s.name, s.settings] for s in SERVERS if s.name in measured]
    lines += ["## How each server was started", "", *table(("server", "with"), settings, 2), ""]
    if results.notes:
        lines += ["## Not measured", ""]
        lines += [
            f"- {server}{f', {workload}' if workload else ''}: {' '.join(why.split())}"
            for server, workload, why in results.notes
        ]
        lines.append("")
    return "\n".join(lines)
