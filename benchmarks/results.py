"""What was measured, and medians of it; kept as JSON beside the report."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from load import Figures

# A server that fails more of its requests than this is not the one to compare with.
ERROR_SHARE_MAX = 0.001


@dataclass(frozen=True)
class Idle:
    """The idle connections of one sample; `before` is the same load without them."""

    answered: int
    still_open: int
    bytes_each: float
    before: Figures


@dataclass(frozen=True)
class Sample:
    """One server under one workload in one round. Memory in KiB."""

    server: str
    workload: str
    round: int
    loads: dict[str, Figures]
    cpu_microseconds: float
    rss_start: int
    pss_start: int
    rss_load: int
    pss_load: int
    idle: Idle | None = None


@dataclass
class Results:
    facts: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    # (server, workload) or (server, "") for all of them, and why there are no figures.
    notes: list[tuple[str, str, str]] = field(default_factory=list)

    def servers(self, workload: str) -> list[str]:
        """In the order in which they were first measured."""
        return list(dict.fromkeys(s.server for s in self.samples if s.workload == workload))

    def rows(self, workload: str, server: str) -> list[Sample]:
        return [s for s in self.samples if s.workload == workload and s.server == server]

    def median(self, workload: str, server: str, figure: Callable[[Sample], float]) -> float | None:
        values = [figure(sample) for sample in self.rows(workload, server)]
        return statistics.median(values) if values else None

    def cpu(self, workload: str, server: str) -> float | None:
        return self.median(workload, server, lambda s: s.cpu_microseconds)

    def rate(self, workload: str, server: str, load: str) -> float | None:
        return self.median(workload, server, lambda s: s.loads[load].rate)

    def p99(self, workload: str, server: str, load: str) -> float | None:
        return self.median(workload, server, lambda s: s.loads[load].p99)

    def errors(self, workload: str, server: str) -> int:
        rows = self.rows(workload, server)
        return sum(figures.errors for sample in rows for figures in sample.loads.values())

    def sound(self, workload: str, server: str) -> bool:
        rows = self.rows(workload, server)
        requests = sum(figures.requests for row in rows for figures in row.loads.values())
        return self.errors(workload, server) <= requests * ERROR_SHARE_MAX

    def best(
        self,
        workload: str,
        servers: Iterable[str],
        figure: Callable[[str], float | None],
        choose: Callable[..., Any] = max,
    ) -> tuple[str, float] | None:
        """The server whose figure is the best, among those that did not fail requests."""
        measured = [
            (name, value)
            for name in servers
            if self.sound(workload, name) and (value := figure(name)) is not None
        ]
        if not measured:
            return None
        best: tuple[str, float] = choose(measured, key=lambda pair: pair[1])
        return best

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
