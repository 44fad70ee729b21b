"""Whoever answers at a shim's socket is not believed for that: not of another task, not against the kernel."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message
from kit.crash import recovered
from kit.node import Node, until

from holdfast.linux import process, sockets
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto import task_pb2, ttrpc_pb2
from holdfast.runtime import keeper
from holdfast.ttrpc.codec import RESPONSE, Decoder, Frame, encode

RUNNING, STOPPED = 2, 3
FAILED_PRECONDITION = 9


@pytest.fixture
def pod(life: Node) -> Iterator[str]:
    pod_id = life.run_pod()
    yield pod_id
    life.remove_pod(pod_id)
    until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")


Answer = Callable[[ttrpc_pb2.Request], Message | None]


def over(task_id: str) -> Message:
    reply = task_pb2.StateResponse(id=task_id, pid=1, status=STOPPED, exit_status=5)
    reply.exited_at.FromNanoseconds(time.time_ns())
    return reply


def of_another(request: ttrpc_pb2.Request) -> Message | None:
    """Its own task has ended, whatever it is asked about; a Wait, which names no task, is answered as well."""
    if request.method == "Wait":
        return task_pb2.WaitResponse(exit_status=5)
    return over("another") if request.method == "State" else None


def ended(request: ttrpc_pb2.Request) -> Message | None:
    """The task that is asked about has ended."""
    if request.method == "Wait":
        return task_pb2.WaitResponse(exit_status=5)
    return over(task_pb2.StateRequest.FromString(request.payload).id) if request.method == "State" else None


def claims_to_be_init(request: ttrpc_pb2.Request) -> Message | None:
    return task_pb2.ConnectResponse(shim_pid=1) if request.method == "Connect" else None


def runs_on(request: ttrpc_pb2.Request) -> Message | None:
    """Whatever it is asked about runs, and cannot be deleted."""
    if request.method == "State":
        return task_pb2.StateResponse(id=task_pb2.StateRequest.FromString(request.payload).id, pid=1, status=RUNNING)
    if request.method == "Delete":
        return ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=FAILED_PRECONDITION, message="it is running"))
    return None


@contextlib.contextmanager
def liar(path: Path, answer: Answer, *, noise: bool = False) -> Iterator[list[str]]:
    """Somebody else at a shim's socket. Yields the methods that were called; what has no answer gets none."""
    calls: list[str] = []
    peers: list[socket.socket] = []
    aside = path.with_name("aside")
    path.rename(aside)
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(path.parent, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)
        listener.listen()
        ours = path.stat().st_ino

        def serve(peer: socket.socket) -> None:
            decoder = Decoder()
            with peer, contextlib.suppress(OSError):
                while data := peer.recv(65536):
                    if noise:
                        calls.append("?")
                        peer.sendall(os.urandom(512))
                        continue
                    for frame in decoder.feed(data):
                        request = ttrpc_pb2.Request.FromString(frame.payload)
                        calls.append(request.method)
                        if (reply := answer(request)) is not None:
                            right = ttrpc_pb2.Response(payload=reply.SerializeToString())
                            response = reply if isinstance(reply, ttrpc_pb2.Response) else right
                            peer.sendall(encode(Frame(frame.stream_id, RESPONSE, response.SerializeToString())))

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peers.append(listener.accept()[0])
                    threading.Thread(target=serve, args=(peers[-1],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield calls
        finally:
            for one in (listener, *peers):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            if path.stat().st_ino == ours:
                aside.rename(path)
            else:
                aside.unlink()  # a shim has taken the place


@pytest.mark.parametrize("lie", [of_another, ended], ids=lambda lie: lie.__name__)
def test_a_container_that_runs_is_not_ended_by_word_of_mouth(life: Node, pod: str, lie: Answer) -> None:
    one = life.run(pod, "trap 'exit 7' TERM; while :; do sleep 0.05; done")
    pid = life.pid(one)
    life.kill()
    with liar(life.state / "pods" / pod / "shim.sock", lie) as calls:
        life.start()
        until(lambda: recovered(life), "recovery", 60)
        until(lambda: calls.count("State") > 1 and "Wait" in calls, "questions after recovery")
        assert life.status(one).state == pb.CONTAINER_RUNNING
        assert process.state(pid) not in ("", "Z")
    life.stop_container(one, 30)
    assert life.status(one).exit_code == 7


def test_an_exit_is_not_taken_from_another_task(life: Node, pod: str) -> None:
    """It ends while somebody answers for another task: the shim is believed, not whoever was in its place."""
    mounts = [pb.Mount(host_path=str(life.base), container_path="/data")]
    one = life.run(pod, "while ! test -e /data/end; do sleep 0.05; done; exit 42", mounts=mounts)
    life.kill()
    with liar(life.state / "pods" / pod / "shim.sock", of_another):
        life.start()
        until(lambda: recovered(life), "recovery", 60)
        (life.base / "end").touch()
        until(lambda: life.status(one).state == pb.CONTAINER_EXITED, "its exit")
    assert life.status(one).exit_code == 42


def test_a_shim_that_never_hears_of_an_end_is_replaced(life: Node, pod: str) -> None:
    """The kernel knows better. Another one takes the pod over, with what runs in it, and deletes what is gone."""
    mounts = [pb.Mount(host_path=str(life.base), container_path="/data")]
    (life.base / "end").unlink(missing_ok=True)
    one = life.run(pod, "while ! test -e /data/end; do sleep 0.05; done; exit 42", "one", mounts=mounts)
    two = life.run(pod, ["/bin/sleep", "1000"], "two")
    pids = [life.pid(one), life.pid(two)]
    shim = next(worker.pid for worker in keeper.workers(life.state) if worker.id == pod)
    life.kill()
    (life.base / "end").touch()
    until(lambda: process.state(pids[0]) == "", "its end")
    with liar(life.state / "pods" / pod / "shim.sock", runs_on) as calls:
        life.start()
        assert life.exited(one).exit_code == 42
        until(lambda: process.state(shim) == "", "the shim to be ended")
        assert calls.count("Delete") > 1, "it had its time to hear of it"
        until(lambda: life.works(two), "another one")
        life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=one))
    assert life.pid(two) == pids[1]


def test_a_pid_that_is_not_the_pods_shim_is_not_taken_for_it(life: Node, pod: str) -> None:
    """The shim is dead and somebody at its socket says to be process 1: a real one takes the pod over."""
    one = life.run(pod, ["/bin/sleep", "1000"])
    shim = next(worker.pid for worker in keeper.workers(life.state) if worker.id == pod)
    life.kill()
    with liar(life.state / "pods" / pod / "shim.sock", claims_to_be_init):
        os.kill(shim, signal.SIGKILL)
        life.start()
        until(
            lambda: [worker for worker in keeper.workers(life.state) if worker.id == pod and worker.pid != shim], "it"
        )
        until(lambda: recovered(life), "recovery", 60)
        assert life.status(one).state == pb.CONTAINER_RUNNING


def test_garbage_at_its_socket_is_no_word_of_a_shim(life: Node, pod: str) -> None:
    """Somebody answers every question with noise: the container runs on, is stopped in time, and its code is exact."""
    one, two = life.run(pod, ["/bin/sleep", "1000"], "one"), life.run(pod, "exit 6", "two")
    assert life.exited(two).exit_code == 6
    pid = life.pid(one)
    life.kill()
    with liar(life.state / "pods" / pod / "shim.sock", of_another, noise=True) as calls:
        life.start()
        until(lambda: recovered(life), "recovery", 60)
        until(lambda: len(calls) > 2, "questions after recovery")
        assert life.status(one).state == pb.CONTAINER_RUNNING
        assert process.state(pid) not in ("", "Z")
        life.stop_container(one, 0)
        assert life.status(one).exit_code == 137
    assert life.status(two).exit_code == 6


def test_a_shim_takes_no_harm_from_garbage(life: Node, pod: str) -> None:
    """Noise is sent to a real shim, by many: each is cut off, and the shim serves on."""
    one = life.run(pod, ["/bin/sleep", "1000"])
    before = next(worker.pid for worker in keeper.workers(life.state) if worker.id == pod)
    for number in range(20):
        with sockets.connect(life.state / "pods" / pod / "shim.sock", timeout=10) as peer:
            peer.sendall(bytes([number]) * 4096)
            with contextlib.suppress(ConnectionResetError):
                assert peer.recv(4096) == b""
    assert life.works(one)
    assert next(worker.pid for worker in keeper.workers(life.state) if worker.id == pod) == before


def test_a_socket_that_is_deleted_ends_nobody(life: Node, pod: str) -> None:
    """After its restart the daemon cannot reach the shim any more; its containers run on, and their ends are exact."""
    one, two = (life.run(pod, "trap 'exit 7' TERM; while :; do sleep 0.05; done", name) for name in ("one", "two"))
    pid = life.pid(one)
    (life.state / "pods" / pod / "shim.sock").unlink()
    assert life.works(one), "the connection is there"
    life.restart()
    until(lambda: recovered(life), "recovery", 60)
    assert (life.status(one).state, life.pid(one)) == (pb.CONTAINER_RUNNING, pid)
    life.stop_container(two, 30)
    assert life.status(two).exit_code == 7
