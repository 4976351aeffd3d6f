"""Draws the figures as horizontal bars: an SVG without any dependency, for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from peers import FLOOR, SERVE_ZIG
from results import Results
from workloads import Workload

WIDTH = 760
LABEL_WIDTH = 150
VALUE_WIDTH = 100
ROW = 22
BAR = 14
TITLE = 34
MARGIN = 16

# The background is drawn: a page may be dark where the browser prefers light, and the reverse.
STYLE = """
  .page { fill: #ffffff } .text { fill: #1f2937 } .quiet { fill: #4b5563 }
  .own { fill: #1d6fd1 } .peer { fill: #a3adba } .floor { fill: #d5dae1 }
  text { font: 13px system-ui, sans-serif } .title { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .text { fill: #e6edf3 } .quiet { fill: #9aa5b1 }
    .own { fill: #4c9bf0 } .peer { fill: #5b6573 } .floor { fill: #343b45 }
  }
"""


@dataclass(frozen=True)
class Panel:
    title: str
    rows: list[tuple[str, float]]
    digits: int

    @property
    def height(self) -> int:
        return TITLE + ROW * len(self.rows) + MARGIN


def panel(results: Results, workload: Workload) -> Panel | None:
    """CPU for the workloads whose bar is CPU, memory for `memory`, requests/s for the others."""
    name = workload.name
    rows: list[tuple[str, float]] = []
    for server in results.servers(name):
        if name in ("hello", "json", "echo"):
            value = results.cpu(name, server)
        elif not workload.loads:
            value = results.median(name, server, lambda s: s.rss_start / 1024)
        else:
            value = results.rate(name, server, workload.loads[0].name)
        if value is not None:
            rows.append((server, value))
    if not rows:
        return None
    if name in ("hello", "json", "echo"):
        return Panel(f"{workload.title}: CPU µs a request (less is better)", sorted_up(rows), 1)
    if not workload.loads:
        return Panel(f"{workload.title}: RSS, MiB (less is better)", sorted_up(rows), 1)
    which = f"{workload.loads[0].name} " if len(workload.loads) > 1 else ""
    cores = "" if workload.pinned else ", two cores"
    return Panel(f"{workload.title}{cores}: {which}requests/s", sorted_up(rows)[::-1], 0)


def sorted_up(rows: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(rows, key=lambda row: row[1])


def draw_panel(drawn: Panel, top: int) -> list[str]:
    room = WIDTH - LABEL_WIDTH - VALUE_WIDTH - 2 * MARGIN
    largest = max(value for _, value in drawn.rows) or 1
    lines = [f'<text class="text title" x="{MARGIN}" y="{top + 20}">{escape(drawn.title)}</text>']
    for index, (name, value) in enumerate(drawn.rows):
        y = top + TITLE + index * ROW
        width = max(1.0, room * value / largest)
        kind = {SERVE_ZIG: "own", FLOOR: "floor"}.get(name, "peer")
        left = MARGIN + LABEL_WIDTH
        label = "text title" if name == SERVE_ZIG else "quiet"
        lines += [
            f'<text class="{label}" x="{left - 8}" y="{y + 12}" text-anchor="end">'
            f"{escape(name)}</text>",
            f'<rect class="{kind}" x="{left}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>',
            f'<text class="text" x="{left + width + 8:.1f}" y="{y + 12}">'
            f"{value:,.{drawn.digits}f}</text>",
        ]
    return lines


def draw(results: Results, workloads: Sequence[Workload]) -> str:
    panels = [found for workload in workloads if (found := panel(results, workload))]
    height = sum(drawn.height for drawn in panels) + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" '
        'aria-label="serve-zig and its peers, median figures">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
    ]
    top = MARGIN
    for drawn in panels:
        lines += draw_panel(drawn, top)
        top += drawn.height
    lines.append("</svg>")
    return "\n".join(lines) + "\n"
