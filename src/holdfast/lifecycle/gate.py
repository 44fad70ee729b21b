"""The gate: OCI runtimes with known escapes are warned of, or new pods under them are refused.

What upstream's version number says is held against the list in `model.escapes`. A distribution fixes without changing
that number: of a Debian package the changelog is believed. What else may have been fixed cannot be seen from here, and
is said by the administrator with `fixed_escapes`.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from holdfast.lifecycle.tasks import apart, within
from holdfast.model.errors import FailedPrecondition, HoldfastError
from holdfast.model.escapes import Escape, known
from holdfast.runtime.handlers import Handler
from holdfast.runtime.versions import Version, Versions

log = logging.getLogger(__name__)

SECONDS: Final = 10.0
UNSEEN: Final = "whether a distribution has fixed them without changing the version cannot be seen here"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of the runtime behind a handler; `problem` is why that is nothing."""

    handler: str
    binary: str
    found: Version | None
    escapes: tuple[Escape, ...] = ()
    problem: str = ""

    @property
    def version(self) -> str:
        """ "runc 1.1.5+ds1 (runc 1.1.5+ds1-1+deb12u1)", the package in brackets."""
        if self.found is None:
            return "unknown"
        package = f" ({self.found.package})" if self.found.package else ""
        return f"{self.found.runtime} {self.found.version}{package}"

    @property
    def note(self) -> str:
        """What is to be thought of the escapes; "" without any."""
        if self.problem or not self.escapes:
            return self.problem
        package = self.found.package if self.found else None
        return f"the changelog of package {package} names no fix for them" if package else UNSEEN

    def __str__(self) -> str:
        what = ", ".join(one.cve for one in self.escapes)
        return f"{self.version} has known escapes: {what}; {self.note}" if what else self.problem

    def as_data(self) -> dict[str, Any]:
        escapes = [{"cve": one.cve, "what": one.what, "fixed": list(one.fixed)} for one in self.escapes]
        return {
            "handler": self.handler,
            "binary": self.binary,
            "version": self.version,
            "escapes": escapes,
            "note": self.note,
        }


class Gate:
    """Looks at the runtimes behind handlers. `fixed` are CVEs that are known to be fixed here all the same."""

    def __init__(self, handlers: Callable[[], Mapping[str, Handler]], refuse: bool, fixed: frozenset[str]) -> None:
        self._handlers = handlers
        self._refuse = refuse
        self._fixed = fixed
        self._versions = Versions()

    async def examine(self) -> list[Finding]:
        """Of each handler whose runtime is known by a program."""
        return await asyncio.gather(*(self._look(one) for one in self._handlers().values() if one.binary))

    async def warn(self) -> None:
        for found in await self.examine():
            if text := str(found):
                log.warning("runtime handler %s: %s", found.handler, text)

    async def require(self, handler: Handler) -> None:
        """Raises FailedPrecondition for a new pod under a runtime with known escapes, where that is configured.

        Likewise for one of which nothing can be told, and for one that has no seccomp.
        """
        if not self._refuse or not handler.binary:
            return
        if text := str(await self._look(handler)):
            raise FailedPrecondition(f"cannot use runtime handler {handler.name}: {text} (known_escapes is refuse)")

    async def _look(self, handler: Handler) -> Finding:
        name, binary = handler.name, handler.binary
        try:
            found = await within(SECONDS, apart(self._versions.of, binary), f"tell the version of {binary}")
        except HoldfastError as exc:
            return Finding(name, binary, None, problem=str(exc))
        if not found.seccomp:
            return Finding(name, binary, found, problem=f"{binary} is built without seccomp: it would apply no profile")
        fixed = self._fixed | (found.package.fixes if found.package else frozenset())
        try:
            return Finding(name, binary, found, tuple(known(found.runtime, found.version, fixed)))
        except ValueError as exc:
            return Finding(name, binary, found, problem=f"cannot tell what {binary} has fixed: {exc}")
