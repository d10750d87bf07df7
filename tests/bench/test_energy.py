"""Power rails of boards that this machine is not."""

import time

import pytest

from segagent_rt.bench import energy
from segagent_rt.bench.energy import EnergyMeter, find_meter


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A folder of the kernel's that tells of rails: name to millivolts and milliamperes."""
    monkeypatch.setattr(energy, "HWMON", tmp_path)
    monkeypatch.setattr(energy, "_nvml", lambda: None)

    def build(**rails):
        folder = tmp_path / "hwmon1"
        folder.mkdir()
        for number, (name, (volts, amperes)) in enumerate(rails.items(), 1):
            (folder / f"in{number}_label").write_text(f"{name}\n")
            (folder / f"in{number}_input").write_text(f"{volts}\n")
            (folder / f"curr{number}_input").write_text(f"{amperes}\n")

    return build


def test_a_module_with_one_input_rail(board):
    board(VDD_IN=(5000, 2000), VDD_CPU_GPU_CV=(5000, 500))
    assert find_meter()() == 10.0


def test_a_module_whose_rails_add_up(board):
    board(VDD_GPU_SOC=(20000, 300), VDD_CPU_CV=(20000, 100), VIN_SYS_5V0=(5000, 400))
    assert find_meter()() == 10.0


def test_one_rail_of_three_is_no_figure(board):
    board(VDD_GPU_SOC=(20000, 300))
    assert find_meter() is None


def test_energy_is_power_over_time():
    start = time.perf_counter()
    with EnergyMeter(lambda: 10.0) as meter:
        while meter.joules is None:  # on a busy machine the first reading may be late
            time.sleep(0.05)
    assert 0 < meter.joules <= 10 * (time.perf_counter() - start)


def test_without_a_reader_or_with_one_that_fails_there_is_no_figure():
    with EnergyMeter(None) as meter:
        pass
    assert meter.joules is None

    def gone():
        raise OSError("the rail has gone")

    with EnergyMeter(gone) as meter:
        time.sleep(0.1)
    assert meter.joules is None
