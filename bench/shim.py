"""Our shim and containerd's own under the same containerd, in turns, both with crun: what a container costs.

    python bench/shim.py [--cycles N]

Each cycle is `ctr run -d`, `task exec`, `task kill`, `task rm`; the time of ctr itself is in every figure. Needs root.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from holdfast.linux import files

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))
sys.path.insert(0, str(Path(__file__).parent))
from image import build_busybox_image
from peers import BIN, IMAGE, Containerd, environment, pss, running

RUNTIMES = {"holdfast": "io.containerd.holdfast.v1", "containerd": "io.containerd.runc.v2"}
WARM_UP = 3
Samples = dict[str, list[float]]


class Cycle:
    """One container's life under one of the shims."""

    def __init__(self, peer: Containerd, shim: str, number: int, samples: Samples) -> None:
        self._peer = peer
        self._name = f"{shim}-{number}"
        self._samples = samples
        crun = ["--runc-binary", "crun"] if shim == "containerd" else []
        self._flags = ["--null-io", "--runtime", RUNTIMES[shim], *crun]

    def run(self) -> None:
        name, began = self._name, time.perf_counter()
        cgroup = ["--cgroup", f"{self._peer.cgroup}/{name}"]
        self._ctr("run", "run", "-d", *self._flags, *cgroup, IMAGE, name, "sleep", "1000")
        self._samples.setdefault("shim PSS, KiB", []).append(float(pss(self._shim())))
        self._ctr("exec", "task", "exec", "--fifo-dir", str(self._peer.base), "--exec-id", "e", name, "true")
        self._ctr("kill", "task", "kill", "-s", "SIGKILL", name)
        self._ctr("remove", "task", "rm", "--force", name)
        self._ctr("", "containers", "rm", name)
        self._samples.setdefault("whole", []).append((time.perf_counter() - began) * 1000)

    def _ctr(self, step: str, *arguments: str) -> None:
        began = time.perf_counter()
        command = ["ctr", "--address", str(self._peer.socket), "--namespace", "k8s.io", *arguments]
        subprocess.run(
            command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if step:
            self._samples.setdefault(step, []).append((time.perf_counter() - began) * 1000)

    def _shim(self) -> int:
        if found := list((self._peer.base / "shims").glob("*/shim.json")):
            return int(json.loads(found[0].read_bytes())["pid"])
        return self._peer.shim_pids()[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=20)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="hf-bench-"))
    os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}"
    os.environ["HOLDFAST_SHIM_STATE"] = str(base / "containerd" / "shims")
    samples: dict[str, Samples] = {shim: {} for shim in RUNTIMES}
    with running(peer := Containerd(base, "crun"), [build_busybox_image(base, IMAGE.removeprefix("docker.io/"))]):
        for number in range(options.cycles + WARM_UP):
            for shim in RUNTIMES:
                Cycle(peer, shim, number, samples[shim] if number >= WARM_UP else {}).run()
    table = Table(title="milliseconds; ratio = holdfast / containerd, medians")
    for column in ("step", *RUNTIMES, "ratio"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for step in samples["holdfast"]:
        mine, other = (statistics.median(samples[shim][step]) for shim in RUNTIMES)
        table.add_row(step, f"{mine:.1f}", f"{other:.1f}", f"{mine / other:.2f}")
    Console(width=110).print(table)
    print(environment())
    files.remove_tree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
