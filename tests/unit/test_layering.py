"""Imports point down only: the table of ARCHITECTURE.md, held against every import in the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "holdfast"
EDGE = {"grpc", "google"}
MESSAGES = {"proto messages", "google"}

# Layer -> what it may import beside itself and the standard library. "proto" is stubs and messages alike; an entry with
# a dot is that one module. Third-party packages are named where they are allowed.
MAY: dict[str, set[str]] = {
    "model": set(),
    "linux": set(),
    "ttrpc.codec": set(),
    "ttrpc": {"linux", *MESSAGES},
    "proto": {"proto", "google", "grpc"},
    "store": {"model", "linux.files", "linux.inject", "apsw"},
    "snapshots": {"store", "linux", "model"},
    "network": {"linux", "model"},
    "runtime": {"ttrpc", "linux", "model", *MESSAGES},
    "images": {"snapshots", "store", "linux", "model", "httpx"},
    "oci": {"model", *MESSAGES},
    "systemd": {"model", "jeepney"},
    "checkpoint": {"linux", "model", "zstandard"},
    "lifecycle": {
        "oci", "systemd", "checkpoint", "images", "network", "snapshots", "runtime", "store", "linux", "model",
        "apsw", "yaml", *MESSAGES,
    },
    "streaming.server": {"streaming", "lifecycle", "model", "h11"},
    "streaming": {"model", "wsproto", "h11"},
    "cri": {"lifecycle", "images", "oci", "model", "proto", *EDGE},
    "agent": {
        "oci.cgroup_files", "oci.unit_properties", "systemd", "proto", "config", "model", "linux", "logs", "metrics",
        "yaml", *EDGE,
    },
    "cli": {"proto", "streaming", "config", "model", "linux", "click", "rich", "yaml", "h11", *EDGE},
    "workers": {"systemd", "streaming", "ttrpc", "linux", "model", "zstandard", *MESSAGES},
    "config": {"model"},
    "metrics": {"model", "prometheus_client"},
    "tracing": {"model", "opentelemetry", "grpc"},
    "logs": set(),
    "doors": {"cri", "streaming", "lifecycle", "runtime", "ttrpc", "linux", "model", "proto", "config", *EDGE},
    "daemon": {
        "doors", "cri", "streaming", "metrics", "tracing", "lifecycle", "images", "snapshots", "network", "runtime",
        "store", "linux", "model", "config", "logs",
    },
    "launch": {"daemon", "config", "logs", "runtime", "linux", "model"},
    "offline": {"launch", "lifecycle", "runtime", "store", "config", "linux", "model"},
    "__main__": {"launch", "cli", "workers.containerd.main"},
    "": set(),
}  # fmt: skip
FORBIDDEN_IN_WORKERS = {"asyncio", "sqlite3", "apsw", "grpc", "concurrent"}
MODULES = sorted(path for path in SOURCE.rglob("*.py") if not path.stem.endswith(("_pb2", "_pb2_grpc")))


def name_of(path: Path) -> str:
    """The dotted name below holdfast; "" for the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    return module if module in MAY else module.partition(".")[0]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names that are imported anywhere in a module, in functions too, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def allowed(layer: str, imported: str) -> bool:
    top, _, rest = imported.partition(".")
    if top in sys.stdlib_module_names:
        return True
    if top != "holdfast":
        return top in MAY[layer]
    rest = rest or "holdfast"
    target = layer_of(rest)
    if target in MAY[layer] or any(f"{rest}.".startswith(f"{one}.") for one in MAY[layer] if "." in one):
        return True
    if target == "proto" and "proto messages" in MAY[layer]:
        return "_pb2_grpc" not in rest
    # `from holdfast import config` names the module; `from holdfast import __version__` names the package.
    return target == layer_of(layer) or rest == "__version__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    layer = layer_of(name_of(path))
    assert layer in MAY, f"{path} is in no layer of the table"
    wrong = [f"{path}:{line}: {layer} imports {name}" for name, line in imports(path) if not allowed(layer, name)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nobody_imports_a_private_name(path: Path) -> None:
    wrong = [
        f"{path}:{line}: {name}"
        for name, line in imports(path)
        if name.startswith("holdfast.")
        and any(part.startswith("_") and part != "__version__" for part in name.split("."))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sorted((SOURCE / "workers").rglob("*.py")), ids=lambda path: path.stem)
def test_workers_have_neither_event_loop_nor_threads(path: Path) -> None:
    tops = {name.partition(".")[0] for name, _ in imports(path)}
    assert tops & (FORBIDDEN_IN_WORKERS | {"threading", "multiprocessing"}) == set()


def loaded_with(module: str) -> set[str]:
    """What a fresh interpreter has loaded after importing one module."""
    script = f"import sys, {module}; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    )


@pytest.mark.parametrize(
    "module",
    [
        "holdfast.workers.keeper",
        "holdfast.workers.shim.server",
        "holdfast.workers.unpacker",
        "holdfast.workers.containerd.serve",
    ],
)
def test_workers_are_light(module: str) -> None:
    """What a worker forked from the keeper carries, directly or not: each module costs every pod memory."""
    assert FORBIDDEN_IN_WORKERS & loaded_with(module) == set()


def test_the_keeper_starts_before_threads_can_exist() -> None:
    """`launch` starts the keeper: gRPC's core has threads and does not support fork, so it must come later."""
    assert not {"grpc", "apsw"} & loaded_with("holdfast.launch")


def test_a_module_that_breaks_the_table_is_found() -> None:
    assert not allowed("model", "holdfast.linux.files.lock")
    assert not allowed("store", "holdfast.linux.mount.mount")
    assert not allowed("runtime", "holdfast.proto.node_pb2_grpc")
    assert not allowed("cli", "holdfast.lifecycle.world.World")
    assert not allowed("linux", "httpx")
    assert allowed("store", "holdfast.linux.files")
    assert allowed("store", "holdfast.linux.files.lock")
    assert allowed("runtime", "holdfast.proto.task_pb2")
    assert allowed("cli", "holdfast.proto.node_pb2_grpc")
    assert allowed("lifecycle", "holdfast.lifecycle.world.World")


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their names alone."""
    names = sorted(path.name for path in (SOURCE.parents[1] / "tests").rglob("test_*.py"))
    assert len(set(names)) == len(names), [name for name in set(names) if names.count(name) > 1]
