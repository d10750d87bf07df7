"""OpenVINO and torch may share a process with ONNX Runtime on processors with AMX."""

import platform

import pytest

from segagent_rt.backends.amx import LIMIT, keep_onednn_off_amx


@pytest.mark.parametrize(
    ("machine", "before", "after"),
    [("x86_64", None, "AVX512_CORE_BF16"), ("x86_64", "ALL", "ALL"), ("aarch64", None, None)],
)
def test_onednn_is_limited_unless_the_user_decided(monkeypatch, machine, before, after):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    environment = {} if before is None else {LIMIT: before}
    monkeypatch.setattr("os.environ", environment)
    keep_onednn_off_amx()
    assert environment.get(LIMIT) == after
