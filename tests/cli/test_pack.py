"""`segagent-rt pack`, `unpack`, and commands that take a packed bundle."""

from __future__ import annotations

from segagent_rt.bundle.bundle import open_bundle


def test_a_bundle_is_packed_run_and_unpacked(terminal, scene_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = terminal("pack", "-q")
    assert done.code == 0, done.err
    assert done.out.startswith("tiny.segagent\t")
    assert terminal("pack").code == 1
    run = terminal("run", scene_file, "--click", "+80,80", "-b", "tiny.segagent", "-o", "masks")
    assert run.code == 0, run.err
    done = terminal("unpack", "tiny.segagent")
    assert done.code == 0, done.err
    assert open_bundle("engines/tiny").digest == open_bundle("tiny.segagent").digest
    assert "already" in terminal("unpack", "tiny.segagent").err


def test_what_is_no_packed_bundle_is_refused_in_a_sentence(terminal, scene_file, tmp_path):
    (tmp_path / "x.segagent").write_bytes(b"nothing")
    for done in (
        terminal("unpack", tmp_path / "x.segagent", "-o", tmp_path / "out"),
        terminal("run", scene_file, "--click", "+80,80", "-b", tmp_path / "x.segagent"),
    ):
        assert done.code == 1
        assert "no packed bundle" in done.err
        assert "hint:" in done.err
