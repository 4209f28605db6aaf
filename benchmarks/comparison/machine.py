"""Describes the machine and the versions that a result comes from."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "aiohttp", "uvicorn", "httptools", "uvloop", "starlette", "swiftclaw")


def describe(haproxy: str, wrk: str) -> dict[str, Any]:
    """`haproxy`, `wrk`: the binaries that were used."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            "haproxy": _word(haproxy, "-v", 2),
            "wrk": _word(wrk, "-v", 1),
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _word(binary: str, flag: str, position: int) -> str:
    """The version that the binary prints, to either output and with any exit status."""
    said = subprocess.run([binary, flag], capture_output=True, text=True, timeout=10, check=False)
    words = (said.stdout or said.stderr).split()
    return words[position] if len(words) > position else "unknown"


def _cpu_model() -> str:
    """The kernel's name of the CPU; on Linux `platform` only returns "x86_64"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
