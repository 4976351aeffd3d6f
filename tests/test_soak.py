"""scripts/soak finds no leak in the server, and finds those that an application has."""

import os
import re
import subprocess
import sys

import pytest

from serving import REPOSITORY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LEAKING = """
import os
import concurrency

kept = []

def memory(environ, start_response):
    kept.append([environ["serve_zig.request_id"]])
    return concurrency.app(environ, start_response)

def descriptors(environ, start_response):
    if environ["PATH_INFO"] != "/numbers" and len(kept) < 200:
        kept.append(os.dup(0))
    return concurrency.app(environ, start_response)
"""


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script and return what it said."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "soak"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_short_soak() -> None:
    """Some thousand requests of some kinds: a row for each, and nothing grows."""
    kinds = ["ok", "bad request", "aborted upload", "suspended and gone", "head timeout"]
    finished = soak("--requests", "3000", "--passes", "2", "--kinds", ",".join(kinds))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = re.findall(r"^\| (\w[\w ./-]*) \| [\d,]+ \|", finished.stdout, re.MULTILINE)
    assert rows == [*kinds, "the whole", "the whole"]


@pytest.mark.parametrize(
    ("leak", "told"),
    [("memory", "ok: blocks: "), ("descriptors", "descriptors are not what they were: ")],
)
def test_a_leak_is_found(
    leak: str, told: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application that keeps something of each request fails the soak."""
    folder = tmp_path_factory.mktemp("leaking")
    (folder / "leaking.py").write_text(LEAKING)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    finished = soak("--requests", "2000", "--kinds", "ok", "--target", f"leaking:{leak}")
    assert finished.returncode == 1, finished.stdout
    assert told in finished.stderr
