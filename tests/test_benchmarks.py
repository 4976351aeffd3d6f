"""The benchmark runs and writes its report; what it measures is no test's business."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "benchmarks" / "run.py"


def run(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [sys.executable, str(RUN), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_without_wrk_it_says_so(tmp_path: Path) -> None:
    finished = run("--out", str(tmp_path / "report"), path=str(tmp_path))
    assert finished.returncode == 2
    assert finished.stdout == "run.py: wrk is not installed (Debian: apt install wrk)\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_an_error(tmp_path: Path) -> None:
    if shutil.which("wrk") is None or shutil.which("taskset") is None:
        pytest.skip("the tools are looked for first")
    finished = run("--workloads", "hallo", "--out", str(tmp_path / "report"))
    assert finished.returncode == 1
    assert "no workload is called 'hallo'" in finished.stderr


def test_one_short_round_of_what_is_installed(tmp_path: Path) -> None:
    if shutil.which("wrk") is None or shutil.which("taskset") is None:
        pytest.skip("wrk and taskset are not installed")
    out = tmp_path / "report"
    # The floor is left out: to compile it takes longer than all the rest.
    servers = "serve-zig,bjoern,fastpysgi,granian,gunicorn-gthread,waitress,cheroot"
    finished = run(
        *("--rounds", "1", "--seconds", "1", "--workloads", "hello,mixed_sleep,memory"),
        *("--servers", servers, "--out", str(out)),
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr

    report = out.with_suffix(".md").read_text()
    assert "## The bars" in report
    assert re.search(r"^\| serve-zig \| [\d,]+ \|", report, re.MULTILINE), finished.stdout
    assert out.with_suffix(".svg").read_text().startswith("<svg ")
    samples = json.loads(out.with_suffix(".json").read_text())["samples"]
    measured = {sample["workload"] for sample in samples if sample["server"] == "serve-zig"}
    assert measured == {"hello", "mixed_sleep", "memory"}


def test_the_bars_are_computed_from_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    results, load, bars = (importlib.import_module(name) for name in ("results", "load", "bars"))

    def sample(server: str, turn: int, cpu: float, errors: int = 0) -> Any:
        figures = load.Figures(1000, 1000.0, 1.0, 2.0, 3.0, errors)
        return results.Sample(server, "echo", turn, {"echo": figures}, cpu, 1, 1, 1, 1)

    measured = results.Results(facts={})
    measured.samples += [sample("serve-zig", turn, cpu) for turn, cpu in enumerate((7, 9, 7.4))]
    measured.samples += [sample("bjoern", turn, cpu) for turn, cpu in enumerate((10, 10, 30))]
    # The lowest figure of all, but of a server that failed requests.
    measured.samples.append(sample("uwsgi", 0, 1, errors=20))

    by_text = {(bar.workload, bar.text): bar for bar in bars.all_bars(measured)}
    echo = by_text["echo", "CPU a request at most 0.75 of the best peer"]
    assert echo.met is True
    assert echo.figure == "0.74 (7.4 to bjoern's 10.0 µs)"
    # So near to the bar, and of three rounds.
    assert echo.verdict == "not decided: met, p = 0.40"
    measured.samples += [sample("serve-zig", turn, 8) for turn in (3, 4)]
    missed = next(bar for bar in bars.all_bars(measured) if bar.workload == "echo")
    assert missed.met is False
    assert by_text["json", "CPU a request at most 0.70 of bjoern"].met is None


def test_significance_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the exact values of the tables of the Mann-Whitney test."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    significance = importlib.import_module("significance")
    apart = significance.p_value([1, 2, 3, 4, 5], [6, 7, 8, 9, 10])
    assert apart == pytest.approx(2 / 252)
    assert significance.p_value([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / 20)
    assert significance.p_value([1, 3, 5, 7], [2, 4, 6, 8]) == pytest.approx(0.6857, abs=1e-4)
    assert significance.p_value([5, 5, 5], [5, 5, 5]) == 1
    assert significance.p_value([1.5], []) == 1
    # Beyond some rounds it is approximated.
    for count, difference in ((9, 1.5), (9, 3.5), (8, 5.5)):
        ours = [float(number) for number in range(count)]
        theirs = [number + difference for number in ours]
        exact = significance.p_value(ours, theirs)
        with monkeypatch.context() as patch:
            patch.setattr(significance, "_EXACT_MAX", 0)
            assert significance.p_value(ours, theirs) == pytest.approx(exact, abs=0.01)
    many = [float(number) for number in range(40)]
    assert significance.p_value(many, many) > 0.9


def test_an_open_loop_counts_what_it_could_not_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that stands still for a second is late for every request that was due then."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    open_loop = importlib.import_module("open_loop")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                number = 0
                while connection.recv(4096):
                    number += 1
                    if number == 20:
                        time.sleep(1)
                    connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        load = open_loop.OpenLoop(listener.getsockname()[1], "/", 1, rate=100)
        found = load.run(1.5)
        load.close()
        server.join()
    assert 149 <= found["requests"] <= 151
    # Two of three requests were due while it slept; a closed loop would have seen one.
    assert found["p50"] > 100_000
    assert found["p99"] > 900_000
    assert found["timeout"] == found["read"] == 0


def test_one_short_attack(tmp_path: Path) -> None:
    if shutil.which("wrk") is None or shutil.which("taskset") is None:
        pytest.skip("wrk and taskset are not installed")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("server and attack need a core each")
    out = tmp_path / "abuse"
    finished = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "abuse.py"), "--attacks", "slow readers"),
            *("--rounds", "1", "--seconds", "1", "--connections", "40", "--out", str(out)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = out.with_suffix(".md").read_text()
    assert re.search(r"^\| slow readers \| 40 readers of 1 MiB", report, re.MULTILINE)
    [sample] = json.loads(out.with_suffix(".json").read_text())["samples"]
    assert sample["done"]["open"] == 40
    assert sample["beside"]["requests"] > 0


def test_an_attack_is_judged_by_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    abuse, load = (importlib.import_module(name) for name in ("abuse", "load"))

    def sample(alone: float, beside: float, p99: float) -> Any:
        before, during = (load.Figures(1, rate, 1.0, p99, 3.0, 0) for rate in (alone, beside))
        control = load.Figures(1, 800.0, 1.0, p99, 3.0, 0)
        return abuse.Sample("pipeline", before, during, control, 8.0, 9.0, 0.5, {})

    samples = [sample(1000, 100, 99.0), sample(1000, 850, 9.0), sample(100, 90, 2.0)]
    assert abuse.is_met(samples)
    assert abuse.row("what it does", samples)[2:5] == ["1,000", "100", "0.85"]
    assert abuse.control_text(samples) == "0.12"
    assert not abuse.is_met([sample(1000, 790, 2.0)])
    assert not abuse.is_met([sample(1000, 1000, 10.0)])
