"""The bars that serve-zig is held to: each computed from the figures of one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import significance
from peers import FLOOR, SERVE_ZIG, SERVERS
from results import Results, Rounds
from workloads import SWITCH_INTERVAL_MS

PEERS = [server.name for server in SERVERS if server.is_peer]
THREADED_PEERS = [server.name for server in SERVERS if server.is_peer and server.threaded]
# A figure so near to its bar says something only with a test of significance.
NEAR = 0.05
# How much of a change counts as "unchanged": less than rounds of the same server differ by.
RATE_UNCHANGED = 0.95
P99_UNCHANGED = 1.10


@dataclass(frozen=True)
class Bar:
    workload: str
    text: str
    figure: str
    # None: not measured in this run.
    met: bool | None
    # Of a figure within 5 % of the bar: how probable it is that rounds on the bar look like this.
    p_value: float | None = None

    @property
    def verdict(self) -> str:
        if self.met is None:
            return "not measured"
        word = "met" if self.met else "**missed**"
        if self.p_value is None:
            return word
        if self.p_value < significance.LEVEL:
            return f"{word} (p = {self.p_value:.3f})"
        return f"not decided: {word}, p = {self.p_value:.2f}"


def unmeasured(workload: str, text: str) -> Bar:
    return Bar(workload, text, "", None)


def near(ours: Rounds, theirs: Rounds, limit: float) -> float | None:
    """The chance that the rounds differ so from `limit` times the other's; None far from it."""
    if abs(ours.median / (limit * theirs.median) - 1) >= NEAR:
        return None
    return significance.p_value(ours.values, [limit * value for value in theirs.values])


def at_most(
    workload: str,
    text: str,
    own: Rounds | None,
    other: Rounds | None,
    limit: float,
    unit: str,
) -> Bar:
    """`own` is at most `limit` times the other's figure."""
    if own is None or other is None:
        return unmeasured(workload, text)
    ratio = own.median / other.median
    figure = f"{ratio:.2f} ({own.median:.1f} to {other.server}'s {other.median:.1f} {unit})"
    return Bar(workload, text, figure, ratio <= limit, near(own, other, limit))


def at_least(
    workload: str,
    text: str,
    own: Rounds | None,
    other: Rounds | None,
    limit: float,
) -> Bar:
    if own is None or other is None:
        return unmeasured(workload, text)
    ratio = own.median / other.median
    figure = f"{ratio:.2f} ({own.median:,.0f}/s to {other.server}'s {other.median:,.0f}/s)"
    return Bar(workload, text, figure, ratio >= limit, near(own, other, limit))


def cpu_bars(results: Results) -> list[Bar]:
    def cpu(workload: str, server: str) -> Rounds | None:
        return results.rounds(workload, server, lambda sample: sample.cpu_microseconds)

    hello = cpu("hello", SERVE_ZIG)
    return [
        at_most(
            "hello",
            "CPU a request at most 0.80 of bjoern",
            hello,
            cpu("hello", "bjoern"),
            0.80,
            "µs",
        ),
        at_most(
            "hello",
            "CPU a request at most 1.35 of the floor",
            hello,
            cpu("hello", FLOOR),
            1.35,
            "µs",
        ),
        at_most(
            "json",
            "CPU a request at most 0.70 of bjoern",
            cpu("json", SERVE_ZIG),
            cpu("json", "bjoern"),
            0.70,
            "µs",
        ),
        at_most(
            "echo",
            "CPU a request at most 0.75 of the best peer",
            cpu("echo", SERVE_ZIG),
            results.best("echo", PEERS, lambda name: cpu("echo", name), min),
            0.75,
            "µs",
        ),
        *(
            at_most(
                "stream",
                f"64 chunks of 1 KiB: CPU a request below {peer}",
                cpu("stream", SERVE_ZIG),
                cpu("stream", peer),
                1.0,
                "µs",
            )
            for peer in ("bjoern", "granian")
        ),
    ]


def rate_bars(results: Results) -> list[Bar]:
    def against_best(workload: str, load: str, text: str) -> Bar:
        def rate(server: str) -> Rounds | None:
            return results.rounds(workload, server, lambda sample: sample.loads[load].rate)

        return at_least(workload, text, rate(SERVE_ZIG), results.best(workload, PEERS, rate), 1.0)

    return [
        against_best("flask", "flask", "requests/s above every peer"),
        against_best("django", "django", "requests/s above every peer"),
        against_best("reply_64k", "64 KiB", "at least the throughput of the best peer"),
        against_best("reply_1m", "1 MiB", "at least the throughput of the best peer"),
    ]


def limit_bar(
    workload: str, text: str, value: float | None, met: Callable[[float], bool], figure: str
) -> Bar:
    if value is None:
        return unmeasured(workload, text)
    return Bar(workload, text, figure.format(value), met(value))


def sleep_bars(results: Results) -> list[Bar]:
    ideal = 6400.0
    return [
        limit_bar(
            "sleep",
            "at least 95 % of the ideal 6,400/s",
            results.rate("sleep", SERVE_ZIG, "sleep"),
            lambda rate: rate >= 0.95 * ideal,
            "{:,.0f}/s",
        ),
        limit_bar(
            "sleep",
            "p99 under 15 ms",
            results.p99("sleep", SERVE_ZIG, "sleep"),
            lambda p99: p99 < 15,
            "{:.2f} ms",
        ),
    ]


def mixed_sleep_bars(results: Results) -> list[Bar]:
    name = "mixed_sleep"
    ideal = 320.0

    def fast(server: str) -> Rounds | None:
        return results.rounds(name, server, lambda sample: sample.loads["fast"].rate)

    return [
        limit_bar(
            name,
            "at least 97 % of the ideal 320/s slow",
            results.rate(name, SERVE_ZIG, "slow"),
            lambda rate: rate >= 0.97 * ideal,
            "{:.1f}/s",
        ),
        at_least(
            name,
            "fast requests/s at least 1.5 times the best threaded peer",
            fast(SERVE_ZIG),
            results.best(name, THREADED_PEERS, fast),
            1.5,
        ),
        limit_bar(
            name,
            "fast p99 at most 3 ms",
            results.p99(name, SERVE_ZIG, "fast"),
            lambda p99: p99 <= 3,
            "{:.2f} ms",
        ),
    ]


def mixed_cpu_bars(results: Results) -> list[Bar]:
    name = "mixed_cpu"
    allowed = 2 * SWITCH_INTERVAL_MS
    text = "fast p99 at most 2 switch intervals (10 ms) more than granian's"
    own, other = results.p99(name, SERVE_ZIG, "fast"), results.p99(name, "granian", "fast")
    if own is None or other is None:
        latency = unmeasured(name, text)
    else:
        latency = Bar(name, text, f"{own:.1f} ms to {other:.1f} ms", own <= other + allowed)
    text = "no starvation: both loads answered, no request failed or timed out"
    fast, slow = results.rate(name, SERVE_ZIG, "fast"), results.rate(name, SERVE_ZIG, "slow")
    if fast is None or slow is None:
        return [latency, unmeasured(name, text)]
    errors = results.errors(name, SERVE_ZIG)
    figure = f"{fast:,.0f}/s fast, {slow:,.0f}/s slow, {errors} errors"
    return [latency, Bar(name, text, figure, errors == 0 and fast > 0 and slow > 0)]


def idle_bars(results: Results) -> list[Bar]:
    rows = [row for row in results.rows("idle", SERVE_ZIG) if row.idle is not None]
    each = results.median("idle", SERVE_ZIG, lambda s: s.idle.bytes_each if s.idle else None)
    answered = min((row.idle.answered for row in rows if row.idle), default=0)
    bars = [
        limit_bar(
            "idle",
            "at most 1 KiB of user memory each",
            each,
            lambda size: size <= 1024,
            f"{{:,.0f}} bytes each of {answered:,}",
        )
    ]
    text = f"rate unchanged (at least {RATE_UNCHANGED:.0%} of that without them)"
    rate = results.median(
        "idle",
        SERVE_ZIG,
        lambda s: s.loads["hello"].rate / s.idle.before.rate if s.idle else None,
    )
    bars.append(limit_bar("idle", text, rate, lambda r: r >= RATE_UNCHANGED, "{:.1%}"))
    text = f"p99 unchanged (at most {P99_UNCHANGED:.0%} of that without them)"
    p99 = results.median(
        "idle",
        SERVE_ZIG,
        lambda s: s.open_loads["hello"].p99 / s.idle.open_before.p99 if s.idle else None,
    )
    bars.append(limit_bar("idle", text, p99, lambda r: r <= P99_UNCHANGED, "{:.1%}"))
    return bars


def memory_bars(results: Results) -> list[Bar]:
    text = "resident memory after start at most bjoern's + 4 MiB"
    own = results.median("memory", SERVE_ZIG, lambda s: s.rss_start / 1024)
    other = results.median("memory", "bjoern", lambda s: s.rss_start / 1024)
    if own is None or other is None:
        return [unmeasured("memory", text)]
    return [Bar("memory", text, f"{own:.1f} to {other:.1f} MiB", own <= other + 4)]


def all_bars(results: Results) -> list[Bar]:
    rates = rate_bars(results)
    return [
        *cpu_bars(results),
        *rates[:2],
        *sleep_bars(results),
        *mixed_sleep_bars(results),
        *mixed_cpu_bars(results),
        *idle_bars(results),
        *rates[2:],
        *memory_bars(results),
    ]
