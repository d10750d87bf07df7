"""Threads: what the machine, the affinity and the control groups leave to this process."""

from __future__ import annotations

import os

import pytest

from segagent_rt.backends import cores

V1 = {"proc/self/cgroup": "12:memory:/x\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/\n"}


def v1(folder, quota, period=100_000):
    place = f"sys/fs/cgroup/{folder}/cpu.cfs_"
    return {**V1, f"{place}quota_us": f"{quota}\n", f"{place}period_us": f"{period}\n"}


def machine(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
            },
            3.0,
        ),
        (v1("cpu,cpuacct/docker/1", 50_000), 0.5),
        (v1("cpu", 200_000), 2.0),  # in a container the group's own folder is the mount point
        (v1("cpu", -1), None),
        ({"proc/self/cgroup": "nonsense\n0::/../..\n", "sys/fs/cgroup/cpu.max": "0 0\n"}, None),
    ],
)
def test_quotas_of_both_kinds_of_control_groups(tmp_path, files, quota):
    assert cores.cpu_quota(machine(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("quota", "asked", "threads"),
    [(None, None, 8), (1.5, None, 2), (0.1, None, 1), (None, 3, 3), (None, 64, 8), (2.0, 2**31, 2)],
)
def test_no_more_threads_than_cores_for_us(monkeypatch, quota, asked, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert cores.thread_count(asked) == threads
