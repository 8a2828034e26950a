"""Which rank gets which GPU, and how many threads."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.cluster.devices import gpu_for_each, resolve_device
from workbench.cluster.host import Host, equal_threads
from workbench.cluster.lab import Lab, current_lab
from workbench.errors import PlanError


def host(name: str, *gpus: str, host_id: str = "a", cores: int = 8) -> Host:
    return Host(f"tls://{name}", name, host_id, cores, gpus, 1 << 30)


@pytest.mark.parametrize(
    ("hosts", "chosen"),
    [
        ([host("0", "0")], (0,)),
        ([host("0", "0"), host("1", "1")], (0, 0)),
        ([host("0", "0", "1"), host("1", "0", "1")], (0, 1)),
        ([host("0", "0", "1"), host("1", "1", "0")], (0, 0)),
        ([host("0", "0"), host("1", "0")], None),
        ([host("0", "0"), host("1", "0", host_id="b")], (0, 0)),
        ([host("0", "0"), host("1")], None),
    ],
)
def test_every_rank_gets_a_gpu_of_its_own_or_none_does(hosts, chosen):
    assert gpu_for_each(hosts) == chosen


def test_the_device_is_the_gpu_where_there_are_enough(lab: Lab):
    assert resolve_device("cpu", lab, 2) == "cpu"
    if gpu_for_each(lab.hosts) is None:
        assert resolve_device("auto", lab, 2) == "cpu"
        with pytest.raises(PlanError, match="needs a GPU for each of 2 ranks"):
            resolve_device("cuda", lab, 2)
    else:
        assert resolve_device("auto", lab, 2) == "cuda"
    with pytest.raises(PlanError, match="device must be"):
        resolve_device("tpu", lab, 1)


def test_threads_are_shared_by_the_workers_of_a_machine():
    hosts = [host("0"), host("1"), host("2", host_id="b", cores=3)]
    assert equal_threads(hosts) == 3
    assert equal_threads([host(str(n), cores=2) for n in range(4)]) == 1


def test_no_lab_is_no_current_lab(monkeypatch: Any):
    monkeypatch.setattr("workbench.cluster.lab._open_labs", [])
    with pytest.raises(PlanError, match=r"Start one first: lab = wb\.start\(workers=2\)"):
        current_lab()
