"""Build hook: compiles the extension module with Zig and tags the wheel for it.

One file serves every CPython from 3.11 on (the stable ABI), so the tag is ``cp311-abi3`` whatever
Python builds it. The module is built for the baseline of the CPU family and, on glibc, for the
glibc of manylinux_2_28, so that a wheel runs on other machines than the one that built it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

EXTENSION = "_core.abi3.so"


class ZigBuildHook(BuildHookInterface[Any]):
    """Runs ``zig build`` before the wheel, editable or not, is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile into ``serve_zig/``; ``version`` is "standard" or "editable"."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        target, tag = platform_target()
        prefix = root / "zig-out"
        command = [
            sys.executable,
            "-m",
            "ziglang",
            "build",
            f"-Dpython-include={python_headers(prefix / 'python-headers')}",
            f"-Dpydust={pydust_source()}",
            f"-Dtarget={target}",
            f"-Doptimize={os.environ.get('SERVE_ZIG_OPTIMIZE', 'ReleaseSafe')}",
            "-Dstrip=true",
            "--prefix",
            str(prefix),
        ]
        subprocess.run(command, cwd=root, check=True)
        # Renamed over the old one: a process that has mapped that keeps its own.
        built = root / "serve_zig" / f"{EXTENSION}.new"
        shutil.copyfile(prefix / "lib" / EXTENSION, built)
        built.replace(root / "serve_zig" / EXTENSION)
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{tag}"


def python_headers(scratch: Path) -> Path:
    """Return a folder with Python.h and everything that it includes.

    Debian's pyconfig.h only names another one, by the processor and below /usr/include, which a
    cross-compiler does not search. There the headers are gathered in ``scratch``, as links.
    """
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        raise RuntimeError(
            f"there is no Python.h in {include}: install the headers of this Python "
            "(Debian and Ubuntu: python3-dev; Fedora: python3-devel; Alpine: python3-dev)"
        )
    config = include.parent / (sysconfig.get_config_var("MULTIARCH") or "") / include.name
    config /= "pyconfig.h"
    if config == include / "pyconfig.h" or not config.exists():
        return include
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for header in include.iterdir():
        (scratch / header.name).symlink_to(config if header.name == config.name else header)
    return scratch


def pydust_source() -> Path:
    """Return the folder with ziggy-pydust's Zig sources."""
    spec = importlib.util.find_spec("pydust")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("ziggy-pydust is not installed: it comes with the build requirements")
    return Path(spec.submodule_search_locations[0]) / "src"


def platform_target() -> tuple[str, str]:
    """Return Zig's target and the wheel's platform tag for this machine."""
    machine = platform.machine().lower()
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if sys.platform == "darwin":
        tag_arch = "arm64" if arch == "aarch64" else arch
        return f"{arch}-macos.11.0", f"macosx_11_0_{tag_arch}"
    if sys.platform != "linux":
        raise RuntimeError(f"serve-zig builds on Linux and macOS, not on {sys.platform}")
    if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or ""):
        return f"{arch}-linux-musl", f"musllinux_1_2_{arch}"
    return f"{arch}-linux-gnu.2.28", f"manylinux_2_28_{arch}"
