"""A version's code, frozen: a folder as one zip file that is named by its content.

The Controller keeps the files in `stateDir/packages` for as long as a version exists, and sends them to the nodes that need
them: so a version can be started again after the files on disk have changed, after the loss of a node and without the
machine that deployed it. Ray's own packages (`working_dir`) are deleted when no job or actor refers to them any more.
Not for data: a folder of more than 100 MiB is rejected.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import stat
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.desired.gitignore import ALWAYS, FILES, IgnoreRules
from cluster.desired.state import write_private, writing

MOST_BYTES = 100 * 2**20
MOST_FILES = 50_000
WAITING_S = 600.0  # how long an uploaded package may wait for its version to be deployed
NAMED = 3  # number of largest entries that an error names
DIGEST = re.compile(r"[0-9a-f]{32}")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # no time of a file is part of the content


class CannotPack(ValueError):
    """The folder cannot be frozen; the text says why in a sentence."""


class DamagedPackage(ValueError):
    """The content does not match the digest."""


@dataclass(frozen=True)
class Package:
    digest: str
    content: bytes  # a zip file


@dataclass(frozen=True)
class Entry:
    """One file: its path in the folder, and its real location."""

    path: str
    file: Path
    size: int
    executable: bool


def pack(folder: Path, *, skip: Collection[Path] = (), most_bytes: int = MOST_BYTES) -> Package:
    """Pack the folder without ignored files and `skip`. Equal content gives an equal digest. Raises CannotPack."""
    if not folder.is_dir():
        raise CannotPack(f"{folder}: no such folder")
    entries = sorted(_bounded(files_of(folder, skip), folder, most_bytes), key=lambda entry: entry.path)
    digest, buffer = hashlib.sha256(), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        for entry in entries:
            try:
                entry.path.encode()
                content = entry.file.read_bytes()
            except UnicodeEncodeError:
                raise CannotPack(f"{entry.path!r} in {folder}: the file name is not UTF-8") from None
            except OSError as error:
                raise CannotPack(f"{entry.file}: cannot be read ({error.strerror})") from None
            _feed(digest, entry.path, entry.executable, content)
            info = zipfile.ZipInfo(entry.path, _EPOCH)
            info.external_attr = (stat.S_IFREG | (0o755 if entry.executable else 0o644)) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return Package(digest.hexdigest()[:32], buffer.getvalue())


def files_of(folder: Path, skip: Collection[Path] = ()) -> Iterator[Entry]:
    """Every file that is part of the code. Links are followed, each folder once."""
    skipped = {path.resolve() for path in skip}
    yield from _walk(folder, "", IgnoreRules().below("", ALWAYS), skipped, set())


def unpack(package: Package, folder: Path) -> None:
    """Check and write all files. Raises DamagedPackage before anything is written."""
    check(package)
    with zipfile.ZipFile(io.BytesIO(package.content)) as archive:
        for info in archive.infolist():
            target = folder / info.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(info))
            target.chmod(0o755 if _is_executable(info) else 0o644)


def check(package: Package) -> None:
    """Raises DamagedPackage unless the content is what the digest says, with paths that stay inside."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(io.BytesIO(package.content)) as archive:
            for info in archive.infolist():
                if info.filename.startswith("/") or ".." in info.filename.split("/") or "\\" in info.filename:
                    raise DamagedPackage(f"package {package.digest}: {info.filename!r} is not a path inside the package")
                _feed(digest, info.filename, _is_executable(info), archive.read(info))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise DamagedPackage(f"package {package.digest} is not a zip file: {error}") from None
    if digest.hexdigest()[:32] != package.digest:
        raise DamagedPackage(f"package {package.digest} has content that does not match its digest")


class Packages:
    """The Controller's packages, one file each. `clock`: monotonic seconds; the times of files are by the clock of the disk's
    host, which may differ."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._since: dict[str, float] = {}  # digest -> its last upload, or when this Controller first saw it

    def get(self, digest: str) -> bytes | None:
        if not DIGEST.fullmatch(digest):
            return None
        try:
            return self._file(digest).read_bytes()
        except FileNotFoundError:
            return None

    def has(self, digest: str) -> bool:
        return bool(DIGEST.fullmatch(digest)) and self._file(digest).is_file()

    def put(self, package: Package) -> None:
        """Raises DamagedPackage, or StateNotSaved when it cannot be written."""
        if not DIGEST.fullmatch(package.digest):
            raise DamagedPackage(f"{package.digest!r} is not the digest of a package")
        self._since[package.digest] = self._clock()
        if self.has(package.digest):
            return
        check(package)
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_private(self._file(package.digest), package.content)

    def drop_all_but(self, wanted: Collection[str]) -> None:
        """Delete packages that are not `wanted`, except recent uploads: their version may be about to be deployed."""
        now = self._clock()
        for file in self._folder.glob("*.zip"):
            since = self._since.setdefault(file.stem, now)
            if file.stem not in wanted and now - since > WAITING_S:
                with contextlib.suppress(OSError):  # deleted meanwhile, or on a folder that cannot be written
                    file.unlink()
                    del self._since[file.stem]

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest}.zip"


def _walk(folder: Path, base: str, rules: IgnoreRules, skip: set[Path], seen: set[Path]) -> Iterator[Entry]:
    real = folder.resolve()
    if real in seen or (base and (real in skip or _is_foreign(folder))):
        return
    seen.add(real)
    for name in FILES:
        rules = rules.below(base, _lines(folder / name))
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise CannotPack(f"{folder}: cannot be read ({error.strerror})") from None
    for item in found:
        path = f"{base}{item.name}"
        try:
            is_folder = item.is_dir()
            if rules.ignore(path, is_folder):
                continue
            if is_folder:
                yield from _walk(Path(item.path), f"{path}/", rules, skip, seen)
            elif item.is_file() and not (not base and _is_configuration(Path(item.path))):
                known = item.stat()
                yield Entry(path, Path(item.path), known.st_size, bool(known.st_mode & stat.S_IXUSR))
        except FileNotFoundError:  # deleted meanwhile, or a broken link
            continue


def _bounded(entries: Iterable[Entry], folder: Path, most_bytes: int) -> list[Entry]:
    kept: list[Entry] = []
    sizes: Counter[str] = Counter()
    for entry in entries:
        kept.append(entry)
        sizes[_top(entry.path)] += entry.size
        if len(kept) > MOST_FILES:
            break
    total = sum(sizes.values())
    if total <= most_bytes and len(kept) <= MOST_FILES:
        return kept
    largest = ", ".join(f"{name} {_mib(size)}" for name, size in sizes.most_common(NAMED))
    what = f"{_mib(total)}, more than the limit of {_mib(most_bytes)}"
    if len(kept) > MOST_FILES:
        what = f"more than {MOST_FILES} files"
    raise CannotPack(f"the code in {folder} is {what} (largest: {largest}); list unneeded files in .swiftclawignore")


def _top(path: str) -> str:
    """The entry that an error names: a file, or a folder of the first two levels."""
    steps = path.split("/")
    return path if len(steps) == 1 else "/".join(steps[: min(2, len(steps) - 1)]) + "/"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 1024:.1f} KiB"


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _is_foreign(folder: Path) -> bool:
    """A virtual environment, or the working folder of a Ray cluster."""
    return (folder / "pyvenv.cfg").is_file() or (folder / "session_latest").is_symlink()


def _is_configuration(file: Path) -> bool:
    """cluster.yaml, under any name: settings are not part of the code."""
    if file.suffix not in (".yaml", ".yml", ".json") or file.stat().st_size > 2**20:
        return False
    try:
        return re.search(rb"import_path\W+deployments\.app[:.]build", file.read_bytes()) is not None
    except OSError:
        return False


def _feed(digest: hashlib._Hash, path: str, executable: bool, content: bytes) -> None:
    digest.update(f"{path}\0{int(executable)}\0{len(content)}\0".encode())
    digest.update(content)


def _is_executable(info: zipfile.ZipInfo) -> bool:
    return bool((info.external_attr >> 16) & stat.S_IXUSR)
