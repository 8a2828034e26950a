"""What the machine is, read from made-up system files and from the real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from workbench import machine


@pytest.fixture
def system(tmp_path: Path):
    """Return a function that writes system files under a root, and returns the root."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return write


@pytest.fixture
def eight_cpus(monkeypatch):
    """Let this process run on CPUs 0-7."""
    monkeypatch.setattr(machine, "_allowed_cpus", lambda: set(range(8)))


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("300000 100000", 3),
        ("250000 100000", 2),
        ("20000 100000", 1),
        ("1600000 100000", 8),
    ],
)
def test_cores_keep_to_the_quota(system, eight_cpus, quota, expected):
    root = system({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": quota})
    assert machine.cores(root) == expected


def test_the_tightest_level_of_the_cgroup_tree_counts(system, eight_cpus):
    root = system(
        {
            "proc/self/cgroup": "0::/pod/job\n",
            "sys/fs/cgroup/pod/job/cpu.max": "max 100000",
            "sys/fs/cgroup/pod/cpu.max": "400000 100000",
        }
    )
    assert machine.cores(root) == 4


def test_the_old_cgroup_layout(system, eight_cpus):
    root = system(
        {
            "proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n0::/\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(2**20),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
        }
    )
    assert machine.cores(root) == 2
    assert machine.memory_bytes(root) == 2**20


def test_a_path_out_of_the_cgroup_tree_is_not_followed(system, eight_cpus):
    root = system(
        {"proc/self/cgroup": "0::/../outside\n", "sys/fs/outside/cpu.max": "100000 100000"}
    )
    assert machine.cores(root) == 8


def test_nothing_known_about_cgroups_means_no_limit(tmp_path, eight_cpus):
    assert machine.cores(tmp_path) == 8
    assert machine.memory_bytes(tmp_path) == psutil.virtual_memory().total


def test_hyperthreads_of_one_core_count_once(system, eight_cpus):
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    root = system({siblings.format(cpu): f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})
    assert machine.physical_cores(root) == 4


def test_cpu_model_is_the_kernels_name_or_the_architecture(system):
    named = system({"proc/cpuinfo": "processor\t: 0\nmodel name\t: Some  CPU @ 3 GHz\n"})
    assert machine.cpu_model(named) == "Some CPU @ 3 GHz"
    assert machine.cpu_model(named / "nothing") != ""


def test_gpus_are_what_torch_lists(monkeypatch):
    listed = f"""print('[["Some GPU", {80 * 2**30}, "9.0"]]')"""
    monkeypatch.setattr(machine, "gpu_visible", lambda: True)
    monkeypatch.setattr(machine, "_GPU_QUERY", listed)
    assert machine.gpus.__wrapped__() == (machine.Gpu("Some GPU", 80 * 2**30, "9.0"),)


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "print('not json')"])
def test_gpus_that_torch_cannot_use_are_not_listed(monkeypatch, program):
    monkeypatch.setattr(machine, "gpu_visible", lambda: True)
    monkeypatch.setattr(machine, "_GPU_QUERY", program)
    assert machine.gpus.__wrapped__() == ()


def test_description_of_this_machine_is_json_and_needs_no_torch():
    program = (
        "import json, sys; from workbench import machine;"
        "print(json.dumps([machine.describe(), 'torch' in sys.modules]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=60
    )
    found, loaded_torch = json.loads(answer.stdout)
    assert not loaded_torch
    assert 1 <= found["physical_cores"] <= found["cores"] <= found["threads"] == os.cpu_count()
    assert found["memory_bytes"] > 0
    assert found["cpu_model"]
    assert set(found["versions"]) == {
        "python", "torch", "dask", "distributed", "numpy", "workbench"
    }  # fmt: skip
