"""Attached to containers of the daemon: whoever dies, copies go on, and input is open as long as it should be."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.attached import UNSURE, Reader, type_in
from kit.node import Node, node, until
from test_foreign_shim import SHIM, kill
from test_shim_death import GATE, WAYS, Pod, kill_shim, opens

from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import foreign, keeper, loggers
from holdfast.runtime.task import TaskClient
from holdfast.ttrpc.client import Client
from holdfast.workers.shim.attach import DIRECTORY

FOREIGN = "runc-v2"
COUNT = "n=0; while ! test -e /data/{0}; do n=$((n+1)); echo line $n; usleep 100; done; echo last $n; exit 3"


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(inject=True, runtimes={FOREIGN: {"shim": SHIM}}) as one:
        yield one


@pytest.fixture(params=["", FOREIGN], ids=["own", "foreign"])
def handler(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def pod(life: Node, handler: str) -> Iterator[Pod]:
    made = Pod(life, life.run_pod(handler=handler))
    yield made
    life.remove_pod(made.id)
    until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")


own = pytest.mark.parametrize("handler", [""], ids=["own"], indirect=True)
by_foreign = pytest.mark.parametrize("handler", [FOREIGN], ids=["foreign"], indirect=True)


def bundle(pod: Pod, container: str) -> Path:
    return pod.node.state / "pods" / pod.id / container


def shim_of(pod: Pod) -> foreign.Bootstrap:
    directory = pod.node.state / "pods" / pod.id
    with contextlib.suppress(FileNotFoundError):
        return foreign.Bootstrap(**json.loads((directory / foreign.BOOTSTRAP).read_bytes()))
    return foreign.Bootstrap(str(directory / "shim.sock"))


@contextlib.contextmanager
def attached(pod: Pod, container: str, name: str = "one", *streams: str) -> Iterator[Reader]:
    """Somebody who reads until it is over, whoever copies for him."""
    where = bundle(pod, container)
    reader = Reader(where, name, *streams)
    if (where / loggers.SOCKET).exists():
        asyncio.run(reader.attach(where / loggers.SOCKET, container, loggers.SERVICE, "Attach"))
    else:
        asyncio.run(reader.attach(Path(shim_of(pod).path), container))
    reader.keep()
    try:
        yield reader
    finally:
        reader.close()


def close_io(pod: Pod, container: str) -> None:
    """As a streamer does for stdin_once: whoever has the container's input open is told."""

    async def tell() -> None:
        shim = shim_of(pod)
        client = await TaskClient.connect(shim.path, shim.service)
        await client.close_io(container)
        client.close()
        socket = bundle(pod, container) / loggers.SOCKET
        if socket.exists():
            logger = await Client.connect(socket)
            await logger.call(loggers.SERVICE, "CloseIO", pb.ListContainersRequest(), pb.ListContainersResponse, 10)
            logger.close()

    asyncio.run(tell())


def assert_the_rest(pod: Pod, container: str, reader: Reader, first: bytes, gate: str) -> None:
    """All lines follow each other before the words that something may be lost, and all up to the end behind them."""
    second = reader.until(b"0\n")
    opens(pod.node, gate)
    assert pod.node.exited(container).exit_code == 3
    until(lambda: not logger_of(pod, container), "the log to be complete")
    reader.release()
    second += reader.rest()
    numbers(first)
    assert second.endswith(b"last %d\n" % numbers(second)[-1])


def numbers(part: bytes) -> list[int]:
    """Of the lines that are whole, which follow each other."""
    found = [int(line.split()[1]) for line in part.decode().splitlines()[1:-1]]
    assert found == list(range(found[0], found[0] + len(found)))
    return found


def kill_logger(pod: Pod, container: str) -> None:
    before = until(lambda: logger_of(pod, container), "a logger")
    kill(before)
    until(lambda: logger_of(pod, container) not in (0, before), "another logger")


def logger_of(pod: Pod, container: str) -> int:
    """The pid of a container's logger, 0 without one."""
    workers = keeper.workers(pod.node.state)
    return next((one.pid for one in workers if (one.kind, one.id) == ("logger", container)), 0)


@own
@pytest.mark.parametrize("way", WAYS)
def test_copies_go_on_when_a_shim_is_killed(pod: Pod, way: str) -> None:
    """What is missing is where it is said that something may be."""
    name = f"gate-{pod.id}"
    one = pod.run(COUNT.format(name))
    with attached(pod, one) as reader:
        first = reader.until(b"00\n")
        WAYS[way](pod)
        first += reader.until(UNSURE).removesuffix(UNSURE)
        assert_the_rest(pod, one, reader, first, name)


@own
def test_what_is_typed_while_there_is_no_shim_arrives(pod: Pod) -> None:
    one = pod.run("stty -echo; echo ready; while read x; do echo got $x; done", tty=True, stdin=True)
    stdin = bundle(pod, one) / "stdin"
    with attached(pod, one) as reader:
        until(lambda: b"ready" in pod.node.container_log(one), "it to be ready")
        shim = pod.shim
        pod.node.kill()
        kill(shim)
        type_in(stdin, b"something\n")
        pod.node.start()
        until(lambda: pod.shim not in (0, shim), "another shim")
        reader.until(b"got something\r\n")
        type_in(stdin, b"more\n")
        reader.until(b"got more\r\n")
    assert process.state(pod.node.pid(one)) not in ("", "Z")


@by_foreign
def test_copies_go_on_when_a_logger_is_killed(pod: Pod) -> None:
    name = f"gate-{pod.id}"
    one = pod.run(COUNT.format(name))
    with attached(pod, one) as reader:
        first = reader.until(b"00\n")
        kill_logger(pod, one)
        first += reader.until(UNSURE).removesuffix(UNSURE)
        assert_the_rest(pod, one, reader, first, name)


def test_both_streams_and_then_their_end(pod: Pod) -> None:
    name = f"gate-{pod.id}"
    one = pod.run(GATE.format(name, "echo err >&2; printf out; exit 4"))
    with attached(pod, one, "one", "stdout", "stderr") as reader:
        opens(pod.node, name)
        assert pod.node.exited(one).exit_code == 4
        reader.release()
        assert (reader.rest(), reader.rest("stderr")) == (b"out", b"err\n")


def test_a_prompt_comes_at_once(pod: Pod) -> None:
    one = pod.run("stty -echo; while printf '$ '; read x; do printf 'got %s' $x; done", tty=True, stdin=True)
    stdin = bundle(pod, one) / "stdin"
    with attached(pod, one) as reader:
        type_in(stdin, b"this\n")
        reader.until(b"got this$ ")
    with attached(pod, one, "two") as again:  # nothing was hung up
        type_in(stdin, b"that\n")
        assert again.until(b"$ ").endswith(b"got that$ ")


def test_without_a_log(pod: Pod) -> None:
    config = pod.node.container_config("while read x; do echo got $x; done; echo over; exit 6", stdin=True)
    config.log_path = ""
    one = pod.node.create(pod.id, config)
    pod.node.start_container(one)
    with attached(pod, one) as reader:
        type_in(bundle(pod, one) / "stdin", b"this\n")
        reader.until(b"got this\n")
        close_io(pod, one)
        assert pod.node.exited(one).exit_code == 6
        reader.release()
        assert reader.rest() == b"over\n"


@pytest.mark.parametrize("death", [False, True], ids=["", "after a death"])
def test_input_is_open_until_it_is_closed(pod: Pod, handler: str, *, death: bool) -> None:
    """Nobody attached, some who come and go, and its shim or logger killed: neither an end nor a start that hangs."""
    one = pod.run("while read x; do echo got $x; done; echo over; exit 6", stdin=True, stdin_once=True)
    stdin = bundle(pod, one) / "stdin"
    for text in ("one", "two"):
        type_in(stdin, f"{text}\n".encode())
        until(lambda text=text: f"got {text}".encode() in pod.node.container_log(one), "its answer")  # type: ignore[misc]
    if death and handler:
        kill_logger(pod, one)
    elif death:
        kill_shim(pod)
    type_in(stdin, b"three\n")
    until(lambda: b"got three" in pod.node.container_log(one), "its answer")
    close_io(pod, one)
    assert pod.node.exited(one).exit_code == 6
    assert not stdin.exists()
    assert not (bundle(pod, one) / DIRECTORY).exists()
