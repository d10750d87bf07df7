"""Deployment files: what they promise about users, ports, tokens and the program's own options."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
CONTAINERS = sorted(DEPLOY.glob("Containerfile.*"))


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.suffix[1:])
def test_containers_run_as_nobody_and_need_a_token(path):
    text = path.read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert "USER 10001" in lines
    assert 'CMD ["serve", "--host", "0.0.0.0"]' in lines
    assert "HEALTHCHECK" in text
    assert "SEGAGENT_CACHE=/var/cache/segagent-rt" in text
    assert not re.search(r"ENV[^\n]*TOKEN|ARG[^\n]*TOKEN|:latest|sudo|curl .*\| *sh", text)
    assert all(":" in line for line in lines if line.startswith("FROM"))


def test_extras_that_containers_install_are_there():
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
    for path in CONTAINERS:
        for group in re.findall(r"(?:\.|/src)\[([\w,]+)\]", path.read_text()):
            assert set(group.split(",")) <= set(extras)


def test_compose_listens_on_this_machine_only_and_wants_a_token():
    yaml = pytest.importorskip("yaml")
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert set(document["services"]) == {"segagent", "segagent-gpu"}
    for service in document["services"].values():
        assert service["ports"] == ["127.0.0.1:8000:8000"]
        assert service["environment"]["SEGAGENT_SERVE_TOKEN"].startswith("${SEGAGENT_SERVE_TOKEN:?")
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_the_unit_is_hardened_and_its_command_is_one_of_ours():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "segagent-rt.service")
    service = unit["Service"]
    assert service["ExecStart"].split()[1:] == ["serve", "--port", "8000"]
    for name in ("NoNewPrivileges", "DynamicUser", "ProtectHome", "PrivateTmp"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path):
    text = (DEPLOY / "segagent-rt.service").read_text()
    path = tmp_path / "segagent-rt.service"
    path.write_text(text.replace("/opt/segagent-rt/bin/segagent-rt", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
