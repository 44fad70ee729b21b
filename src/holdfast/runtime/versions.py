"""Which version of an OCI runtime a program is, and what its package has fixed though upstream's version stays."""

import contextlib
import gzip
import hashlib
import logging
import os
import re
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.linux import files, process
from holdfast.model.errors import Unavailable
from holdfast.model.escapes import parse_first_line

log = logging.getLogger(__name__)

SECONDS: Final = 5.0
SUM: Final = 34  # of 32 digits and two spaces
SAID_LIMIT: Final = 64 * 1024
LIST_LIMIT: Final = 4 * 1024 * 1024
DPKG: Final = Path("/var/lib/dpkg/info")
DOCUMENTS: Final = Path("/usr/share/doc")
CHANGELOGS: Final = ("changelog.Debian.gz", "changelog.gz")  # of a native package the second
_HEADLINE: Final = re.compile(r"(\S+) \(([^)]+)\)")
_CVE: Final = re.compile("CVE-[0-9]{4}-[0-9]{4,}")


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package that this very program is of. `fixes` are the CVEs that its changelog names."""

    name: str
    version: str
    fixes: frozenset[str]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Version:
    """What a program says that it is, and the package that it is of, if that could be found out.

    Without `seccomp` it runs containers unconfined and does not say so: a crun that is built without libseccomp does;
    a runc refuses to.
    """

    runtime: str
    version: str
    package: Package | None
    seccomp: bool = True


class Versions:
    """Asks each program once, and again when another one is in its place."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._known: dict[str, tuple[tuple[int, ...], Version]] = {}

    def of(self, binary: str) -> Version:
        """Blocks. Raises Unavailable, naming the program, when it does not say."""
        try:
            found = os.stat(binary)
            mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if (known := self._known.get(binary)) is not None and known[0] == mark:
                return known[1]
            said = ask(binary, "--version", self._seconds)
            runtime, version = parse_first_line(said, Path(binary).name)
            seccomp = runtime not in ("crun", "krun") or "+SECCOMP" in said.split()
            answer = Version(runtime, version, package_of(binary), seccomp)
        except (OSError, ValueError, subprocess.TimeoutExpired) as exc:
            raise Unavailable(f"cannot tell the version of {binary}: {exc}") from exc
        self._known[binary] = mark, answer
        return answer


def ask(binary: str, argument: str, seconds: float = SECONDS) -> str:
    """What a program says of itself. What it starts is killed with it, and it cannot block at a pipe.

    Raises OSError and subprocess.TimeoutExpired.
    """
    with tempfile.TemporaryFile() as said, contextlib.ExitStack() as stack:
        given, executable = [], None
        if (image := process.sealed_crun(binary)) >= 0:
            stack.callback(os.close, image)
            given, executable = [image], f"/proc/self/fd/{image}"
        with subprocess.Popen(
            [binary, argument], executable=executable, pass_fds=given,
            stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL, start_new_session=True,
        ) as asked:  # fmt: skip
            try:
                asked.wait(seconds)
            finally:
                process.kill_group(asked.pid)
        said.seek(0)
        return said.read(SAID_LIMIT).decode(errors="replace")


def package_of(binary: str) -> Package | None:
    """The package whose very file this is, by dpkg's checksum; None when there is none, or that cannot be seen."""
    path = os.path.realpath(binary)
    try:
        sums = files.read_bounded(DPKG / f"{Path(path).name}.md5sums", LIST_LIMIT).decode()
        listed = {line[SUM:]: line.partition(" ")[0] for line in sums.splitlines()}
        places = (path.lstrip("/"), f"usr{path}")  # a package may have it in /bin, which is /usr/bin
        with open(path, "rb") as file:
            real = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if real not in map(listed.get, places):
            return None
        return _read_changelog(Path(path).name)
    except (OSError, ValueError, EOFError, zlib.error) as exc:
        log.info("cannot tell which package %s is of: %s", binary, exc)
        return None


def _read_changelog(name: str) -> Package | None:
    """The newest entry's headline has the version, deb-changelog(5)."""
    for changelog in CHANGELOGS:
        path = DOCUMENTS / name / changelog
        if path.exists():
            with gzip.open(path, "rt", errors="replace") as file:
                text = file.read(LIST_LIMIT)
            match = _HEADLINE.match(text)
            return Package(match[1], match[2], frozenset(_CVE.findall(text))) if match else None
    return None
