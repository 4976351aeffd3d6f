"""What was measured, and medians of it; kept as JSON beside the report."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from load import Figures

# A server that fails more of its requests than this is not the one to compare with.
ERROR_SHARE_MAX = 0.001


@dataclass(frozen=True)
class Idle:
    """The idle connections of one sample; `before` and `open_before` are the same loads without."""

    answered: int
    still_open: int
    bytes_each: float
    before: Figures
    open_before: Figures


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
    # The loads that have a rate, once more at that rate; see open_loop.py.
    open_loads: dict[str, Figures] = field(default_factory=dict)


@dataclass(frozen=True)
class Rounds:
    """One figure of one server, in each round."""

    server: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def open_p99(sample: Sample, load: str) -> float | None:
    figures = sample.open_loads.get(load)
    return None if figures is None else figures.p99


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

    def rounds(
        self, workload: str, server: str, figure: Callable[[Sample], float | None]
    ) -> Rounds | None:
        """The figure of each round that has one; None where none has."""
        found = (figure(sample) for sample in self.rows(workload, server))
        values = tuple(value for value in found if value is not None)
        return Rounds(server, values) if values else None

    def median(
        self, workload: str, server: str, figure: Callable[[Sample], float | None]
    ) -> float | None:
        rounds = self.rounds(workload, server, figure)
        return None if rounds is None else rounds.median

    def cpu(self, workload: str, server: str) -> float | None:
        return self.median(workload, server, lambda s: s.cpu_microseconds)

    def rate(self, workload: str, server: str, load: str) -> float | None:
        return self.median(workload, server, lambda s: s.loads[load].rate)

    def p99(self, workload: str, server: str, load: str) -> float | None:
        """At the load's fixed rate: what wrk does not send while the server stands still is missing
        from wrk's percentiles.
        """
        return self.median(workload, server, lambda s: open_p99(s, load))

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
        figure: Callable[[str], Rounds | None],
        choose: Callable[..., Rounds] = max,
    ) -> Rounds | None:
        """The server whose median is the best, among those that did not fail requests."""
        measured = [
            rounds
            for name in servers
            if self.sound(workload, name) and (rounds := figure(name)) is not None
        ]
        return choose(measured, key=lambda rounds: rounds.median) if measured else None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
