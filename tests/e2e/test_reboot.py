"""A reboot, as far as one can be had without one: every process, mount and volatile file gone, another boot id."""

import json
import os

import grpc
import pytest
from kit.boot import reboot
from kit.crash import recovered
from kit.node import node, until

from holdfast.proto import runtime_v1_pb2 as pb


@pytest.mark.parametrize("network", [pb.NODE, pb.POD])
def test_what_ran_is_over_and_everything_else_is_kept(network: pb.NamespaceMode) -> None:
    with node() as one:
        pod_id = one.run_pod(one.pod_config(network=network))
        running = one.run(pod_id, "sleep 1000", "running", network=network)
        exited = one.run(pod_id, "exit 7", "exited", network=network)
        created = one.create(pod_id, one.container_config("exit 0", "created", network=network))
        one.exited(exited)
        kept = [one.status(exited), one.status(created)]
        late = one.container_config("exit 0", "late", network=network)
        reboot(one)
        one.start()
        status = one.exited(running)
        assert (status.exit_code, status.reason) == (255, "NodeRebooted")
        assert "reboot" in status.message
        assert [one.status(exited), one.status(created)] == kept
        until(lambda: [pod.state for pod in one.pods()] == [pb.SANDBOX_NOTREADY], "the pod to be not ready")
        until(lambda: recovered(one), "recovery")
        report = json.loads(one.cli("recovery", "--output", "json").stdout)
        assert report["rebooted"]
        told = {(each["name"], each["before"], each["after"]): each["why"] for each in report["findings"]}
        assert "reboot" in told["running", "RUNNING", "EXITED"]
        assert "reboot" in told[one.pods()[0].metadata.name, "READY", "NOTREADY"]
        for refused in (lambda: one.start_container(created), lambda: one.create(pod_id, late)):
            with pytest.raises(grpc.RpcError) as failure:
                refused()
            assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        snapshots = len(os.listdir(one.root / "snapshots"))
        assert snapshots == 4  # the image's layer, and a writable one for each container
        again = one.run_pod(one.pod_config(network=network))
        assert one.exited(one.run(again, "exit 3", network=network)).exit_code == 3
        one.call("RemoveContainer", pb.RemoveContainerRequest(container_id=created))
        one.restart()
        assert (one.status(running), one.status(exited)) == (status, kept[0])
        for pod in (pod_id, again):
            one.remove_pod(pod)
        assert not one.leftovers()
