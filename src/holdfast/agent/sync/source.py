"""Where pods come from: directories of manifests, looked at again and again.

What cannot be read says nothing: neither a directory that cannot be listed nor a file that is refused takes away what
it said before. A file counts once it has been the same for two looks: one that is being written is not half of it.
An agent that begins knows pods by their records, and ConfigMaps and Secrets by what their manifests have last said of
them (said.py).
"""

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from holdfast.agent.pod.decode import Refused
from holdfast.agent.pod.manifest import MOST_BYTES, Data, Manifest, parse
from holdfast.agent.pod.spec import Pod
from holdfast.linux import files

SUFFIXES: Final = (".yaml", ".yml", ".json")
WRITTEN: Final = "it is being written"
UNSEEN: Final = "it has not been read again yet"
MISSED: Final = "it is not there any more"
PASSING: Final = (WRITTEN, MISSED)  # what the next look will know more of
NOTHING: Final = Manifest()
Stamp = tuple[int, int, int, int]
NEVER: Final[Stamp] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Found:
    """`pods` by uid, each with its file; `unread` by file, or directory, why it says nothing new."""

    pods: Mapping[str, tuple[str, Pod]] = field(default_factory=dict)
    data: Mapping[tuple[str, str, str], Data] = field(default_factory=dict)
    warnings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    listed: frozenset[str] = frozenset()  # directories

    def has_no(self, uid: str, file: str) -> bool:
        """Whether it is certain that nobody asks any more for a pod that came from a file."""
        return uid not in self.pods and file not in self.unread and os.path.dirname(file) in self.listed


@dataclass(slots=True)
class _File:
    stamp: Stamp | None = None
    taken: Stamp | None = None
    manifest: Manifest = NOTHING
    why: str = ""


class Source:
    """Blocking: to be called away from the event loop, one call at a time."""

    def __init__(self, directories: tuple[Path, ...], said: Mapping[str, tuple[Data, ...]] | None = None) -> None:
        """`said` is by file, what one of before has said of data."""
        self._directories = directories
        self._files = {
            path: _File(NEVER, manifest=Manifest(data=found), why=UNSEEN) for path, found in (said or {}).items()
        }

    @property
    def said(self) -> dict[str, tuple[Data, ...]]:
        """By file."""
        return {path: one.manifest.data for path, one in sorted(self._files.items()) if one.manifest.data}

    def look(self) -> Found:
        unread: dict[str, str] = {}
        listed = set()
        for directory in self._directories:
            try:
                self._look_into(directory)
                listed.add(os.fspath(directory))
            except OSError as exc:
                unread[os.fspath(directory)] = exc.strerror or str(exc)
        unread |= {path: one.why for path, one in self._files.items() if one.why}
        return self._sum(unread, frozenset(listed))

    def _look_into(self, directory: Path) -> None:
        there: dict[str, Stamp] = {}
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIXES) and not entry.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        found = entry.stat()
                        if stat.S_ISREG(found.st_mode):
                            there[entry.path] = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        for path in [path for path in self._files if os.path.dirname(path) == os.fspath(directory)]:
            if path not in there:
                self._miss(path)
        for path, stamp in there.items():
            self._take(path, stamp)

    def _miss(self, path: str) -> None:
        """A file that is not there may be on its way from one name to another: it has to be missed twice."""
        if self._files[path].stamp is None:
            del self._files[path]
        else:
            self._files[path] = replace(self._files[path], stamp=None, taken=None, why=MISSED)

    def _take(self, path: str, stamp: Stamp) -> None:
        known = self._files.setdefault(path, _File(why=WRITTEN))
        if known.stamp != stamp:
            known.stamp = stamp
            known.why = WRITTEN if known.why == UNSEEN else known.why or WRITTEN
        elif known.taken != stamp:
            known.taken = stamp
            try:
                known.manifest, known.why = _read(path), ""
            except (Refused, OSError) as exc:
                known.why = str(exc)

    def _sum(self, unread: dict[str, str], listed: frozenset[str]) -> Found:
        """Of two pods of one name the one counts whose file comes first."""
        pods: dict[str, tuple[str, Pod]] = {}
        names: dict[tuple[str, str], str] = {}
        data: dict[tuple[str, str, str], Data] = {}
        warnings: dict[str, tuple[str, ...]] = {}
        for path, one in sorted(self._files.items()):
            warnings[path] = one.manifest.warnings
            for pod in one.manifest.pods:
                name = (pod.metadata.namespace, pod.metadata.name)
                if name in names or pod.metadata.uid in pods:
                    first = names.get(name, "another file")
                    warnings[path] += (f"pod {'/'.join(name)} is in {first} already",)
                    continue
                names[name] = path
                pods[pod.metadata.uid] = (path, pod)
            data = {(found.kind, found.namespace, found.name): found for found in one.manifest.data} | data
        return Found(pods, data, warnings, unread, listed)


def _read(path: str) -> Manifest:
    found = parse(files.read_bounded(path, MOST_BYTES), os.path.basename(path))
    if not found.pods and not found.data:
        raise Refused("it says nothing")
    return found
