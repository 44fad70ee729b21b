"""Which container of a pod is meant, and which run of it."""

from typing import Any

import pytest

from holdfast.cli.errors import CommandError, Missing
from holdfast.cli.targets import DEFAULT_CONTAINER, Wanted, chosen, run_of


def pod(**annotations: str) -> dict[str, Any]:
    spec = {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}
    before = {"terminated": {"containerID": "a-0"}}
    running = {"name": "a", "containerID": "a-1", "state": {"running": {}}, "lastState": before}
    waiting = {"name": "b", "containerID": "", "state": {"waiting": {"reason": "ErrImagePull"}}}
    status = {"containerStatuses": [running, waiting]}
    return {"metadata": {"name": "p", "annotations": annotations}, "spec": spec, "status": status}


def wanted(container: str = "") -> Wanted:
    return Wanted("pod/p", "", "", container)


def test_the_first_is_told_and_others_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen(pod(), wanted()) == "a"
    assert capsys.readouterr().err == 'Defaulted container "a" out of: a, b, i (init)\n'
    assert chosen(pod(**{DEFAULT_CONTAINER: "b"}), wanted()) == "b"
    assert chosen(pod(**{DEFAULT_CONTAINER: "nobody"}), wanted("i")) == "i"
    assert capsys.readouterr().err == ""


def test_whom_it_has_not() -> None:
    with pytest.raises(Missing, match="cannot find container 'x' in pod 'p': it has a, b, i"):
        chosen(pod(), wanted("x"))
    orphan = {"metadata": {"name": "p"}, "spec": {}, "status": {"message": "there is no record of it"}}
    with pytest.raises(CommandError, match="cannot tell the containers of pod 'p': there is no record of it"):
        chosen(orphan, wanted())


def test_which_run() -> None:
    assert [run_of(pod(), "a", previous=one) for one in (False, True)] == ["a-1", "a-0"]
    with pytest.raises(CommandError, match='container "b" in pod "p" is waiting to start: ErrImagePull'):
        run_of(pod(), "b", previous=False)
    with pytest.raises(Missing, match='previous terminated container "b" in pod "p" not found'):
        run_of(pod(), "b", previous=True)
