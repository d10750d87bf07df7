"""What `doctor` finds out of a GPU and of a Jetson."""

from __future__ import annotations

import pytest

from segagent_rt import doctor, jetson
from segagent_rt.bundle.bundle import open_bundle
from tests.backends.fake_driver import FakeDriver

RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A Jetson whose tool for power modes says what it is told to."""

    def make(release: str, said: str) -> None:
        (tmp_path / "release").write_text(release)
        monkeypatch.setattr(jetson, "RELEASE", tmp_path / "release")
        tool = tmp_path / "nvpmodel"
        tool.write_text(f'#!/bin/sh\ntest "$1" = -q || exit 1\n{said}\n')
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return make


def test_a_jetson_with_its_release_and_power_mode(board, machine):
    board(RELEASE, "echo 'NV Power Mode: MAXN_SUPER'; echo 2")
    machine(FakeDriver(integrated=True))
    found = doctor.examine()["machine"]
    assert found["jetson"] == "L4T 36.4.3 (JetPack 6)"
    assert found["power mode"] == "MAXN_SUPER"
    assert found["gpu"] == "Fake Orin, sm_87, 8.6 GB, shared with the processor"
    assert found["driver"] == "for CUDA 12.6"


@pytest.mark.parametrize(
    ("release", "said", "wanted"),
    [
        (
            "# R39 (release), REVISION: 2.0, GCID: 1\n",
            "exit 3",
            {"jetson": "L4T 39.2.0 (JetPack 7)"},
        ),
        ("# R99 (release), REVISION: 1.0\n", "echo nothing", {"jetson": "L4T 99.1.0"}),
        ("something else", "echo 'NV Power Mode: 15W'", {"power mode": "15W"}),
    ],
)
def test_what_a_board_does_not_say_is_left_out(board, machine, release, said, wanted):
    board(release, said)
    machine(None)
    found = doctor.examine()["machine"]
    assert {k: v for k, v in found.items() if k in ("jetson", "power mode", "gpu")} == wanted


def test_a_tool_that_hangs_is_not_waited_for(board, monkeypatch):
    monkeypatch.setattr(jetson, "_PATIENCE", 0.2)
    board(RELEASE, "exec sleep 5")
    assert jetson.power_mode() is None


def test_pip_s_gpu_build_on_a_jetson_is_advised_against():
    packages = {"onnxruntime-gpu": "1.31.1"}
    assert "no code for the GPU of a Jetson" in next(doctor._advice(packages, {"jetson": "L4T"}))
    assert list(doctor._advice(packages, {})) == []


def test_without_a_gpu_nothing_is_made_up(machine):
    machine(None)
    assert not {"gpu", "driver", "jetson", "power mode"} & set(doctor.examine()["machine"])


def test_the_variants_of_a_bundle_that_suit_the_gpu_are_named(machine):
    found = doctor.examine_variants(open_bundle())
    assert [(fit["need"]["variant"], fit["problem"]) for fit in found] == [
        ("cpu-w8", None),
        ("portable", None),
    ]
    machine(None)
    assert doctor.examine_variants(open_bundle()) == []
