"""Logs of the agent's pods with real containers: rotated, no line lost whoever is killed meanwhile, gone in the end."""

import contextlib
import gzip
import json
import os
import signal
import subprocess
from pathlib import Path

from kit.agent import IMAGE, Agent
from kit.node import BIN, SECONDS

POINTS = ["room", "packed", "renamed", "reopened"]
COUNT = """
i=0
while [ ! -e /v/stop ]; do
    k=0
    while [ $k -lt 20 ]; do k=$((k+1)); i=$((i+1)); echo $i; done
    usleep 20000
done
[ -e /v/last ] || { echo $i > /v/l; mv /v/l /v/last; }
"""  # another run has nothing to tell


def pod(script: str, more: str = "") -> str:
    main = {"name": "main", "image": IMAGE, "command": ["sh", "-c", script]}
    main["volumeMounts"] = [{"name": "v", "mountPath": "/v"}]
    spec = {"containers": [main], "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "count"}, "spec": spec})


def limits(there: Agent, size: str, most: int) -> None:
    """From now on."""
    there.flags = ["--container-log-max-size", size, "--container-log-max-files", str(most)]
    there.flags += ["--container-log-monitor-interval", "0.3"]
    there.restart(signal.SIGTERM)


def directory(there: Agent) -> Path:
    (found,) = there.logs.glob("default_count_*/main")
    return found


def begin(there: Agent, script: str) -> Path:
    """Where its logs are."""
    there.write("count.yaml", pod(script))
    there.until(lambda: there.running("main"), "it to run")
    return directory(there)


def stop(there: Agent) -> int:
    """The last number that it has written; it has ended."""
    (volume,) = there.root.glob("pods/*/volumes/*/v")
    (volume / "stop").touch()
    there.until((volume / "last").exists, "it to end")
    return int((volume / "last").read_text())


def numbers(place: Path, name: str = "0.log") -> list[int]:
    """Of a log and what was rotated away of it, the oldest first; of what is just packed either is enough."""
    found = {one.name: one for one in place.iterdir() if one.name.startswith(f"{name}.") and one.suffix != ".tmp"}
    older = [found[one] for one in sorted(found) if f"{one}.gz" not in found]
    data = b"".join(gzip.decompress(one.read_bytes()) if one.suffix == ".gz" else one.read_bytes() for one in older)
    return [int(line.split(b" ", 3)[3]) for line in (data + (place / name).read_bytes()).splitlines()]


def complete(there: Agent, place: Path, last: int, first: int = 0) -> None:
    """Each line is there once, up to the last, and without a gap: from the `first` on, or from that which is kept.

    What was begun of a rotation when the container ended is done a moment later.
    """
    found: list[int] = []

    def is_complete() -> bool:
        with contextlib.suppress(FileNotFoundError):  # packed just now
            found[:] = numbers(place)
            return bool(found) and found == list(range(first or found[0], last + 1))
        return False

    there.until(is_complete, f"the lines up to {last} to be there")


def test_no_line_is_lost_by_whom_ever_is_killed(there: Agent) -> None:
    """The agent at each step of a rotation, and the daemon; somebody who follows the log sees it whole."""
    place = begin(there, COUNT)
    with (there.base / "followed").open("wb") as seen:
        follow = [BIN / "holdfast", "logs", "-f", "pod/count"]
        following = subprocess.Popen(follow, stdout=seen, env=there.environment)
        try:
            there.until(lambda: (there.base / "followed").stat().st_size, "it to be followed")
            limits(there, "8Ki", 1000)  # who follows sees what is rotated from now on, and not what was before
            for point in POINTS:
                (there.inject / f"agent.log.{point}").write_text("1")
                there.until(lambda point=point: (there.inject / f"agent.log.{point}.hit").exists(), f"log.{point}")
                there.end(signal.SIGKILL)
                if point == "renamed":
                    assert not (place / "0.log").exists()
                    there.node.restart()
                there.start()
            before = len(list(place.iterdir()))
            there.until(lambda: len(list(place.iterdir())) > before, "another rotation")
            last = stop(there)
            there.until(lambda: len(there.runs("main")) > 1 and (place / "0.log").exists(), "it to run again")
            complete(there, place, last, 1)
            assert following.wait(SECONDS) == 0
        finally:
            following.kill()
            following.wait()
    assert list(map(int, (there.base / "followed").read_text().split())) == list(range(1, last + 1))
    assert any(one.suffix == ".gz" for one in place.iterdir())
    (there.manifests / "count.yaml").unlink()
    there.until(lambda: not there.left(), "nothing to be left")


def test_a_container_that_ends_while_its_log_has_no_name(there: Agent) -> None:
    limits(there, "8Ki", 1000)
    place = begin(there, f"{COUNT}exec sleep 1000")
    (there.inject / "agent.log.renamed").write_text("1")
    there.until(lambda: (there.inject / "agent.log.renamed.hit").exists(), "the rotation")
    there.end(signal.SIGKILL)
    last = stop(there)
    os.kill(there.node.pid(there.running("main")), signal.SIGKILL)
    there.until(lambda: not there.running("main"), "it to be dead")
    there.start()
    there.until(lambda: (place / "0.log").exists(), "the log to have its name back")
    complete(there, place, last, 1)


def test_only_so_many_files(there: Agent) -> None:
    limits(there, "4Ki", 3)
    place = begin(there, COUNT)
    there.until(lambda: any(one.suffix == ".gz" for one in place.iterdir()), "a packed one")
    seen: set[str] = set()
    while len(seen) < 8:  # as many as come and go
        names = [one.name for one in place.iterdir() if one.suffix != ".tmp"]
        assert len(names) <= 4, "one more while it is packed"
        seen.update(names)
    last = stop(there)
    there.until(lambda: not there.running("main") and (place / "0.log").exists(), "its end")
    complete(there, place, last)
    (there.manifests / "count.yaml").unlink()
    there.until(lambda: not there.left(), "nothing to be left")
