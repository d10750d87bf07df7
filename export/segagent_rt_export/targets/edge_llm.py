"""TensorRT Edge-LLM's exporter, in an environment of its own that is made here once.

It pins torch, transformers, onnx and numpy to other versions than ours; so it is never imported,
but run. Exporting needs neither a GPU nor TensorRT.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from segagent_rt.memory import check_disk_space
from segagent_rt_export.errors import ToolFailed

NAME, VERSION = "tensorrt-edgellm", "0.11.0"
PACKAGES = (f"{NAME}[export]=={VERSION}", "nvidia-modelopt==0.45.0", "datasets==5.0.0")
"""Its vision exporter imports the last two, though its extra `export` does not name them."""

PYTHONS = ((3, 10), (3, 12))
"""The oldest and the newest Python that it comes for."""

ROOM = 4_000_000_000
"""Bytes of disk that the environment takes with torch for CPUs, and pip while it works."""

READY = "ready"
"""A file that is written into the environment when it is complete."""

_VERSIONS = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
)


@dataclass(frozen=True, slots=True)
class Tool:
    """An environment: its interpreter, and the version of every package in it."""

    python: Path
    packages: Mapping[str, str]

    def export(self, checkpoint: Path, output: Path, vocabulary: Path, log: Path) -> None:
        """Write `llm/` and `visual/` into `output`; what the exporter says goes into `log`.

        Raises:
            ToolFailed: it ended with an error.
        """
        module = ("-I", "-u", "-m", "tensorrt_edgellm.scripts.export")
        command: list[str | Path] = [self.python, *module, checkpoint, output]
        if vocabulary.is_dir():
            command += ["--reduced-vocab-dir", vocabulary]
        code = _run(command, log)
        if code:
            raise ToolFailed(
                f"{NAME} {VERSION} did not export the model (exit code {code}): {_last_line(log)}",
                hint=f"all that it said is in {log}",
            )


def open_tool(cache: Path, report_progress: Callable[[str], None]) -> Tool:
    """The environment below `cache`, made if it is not there. Takes minutes and the network then.

    Raises:
        ToolFailed: it cannot be made, or holds another version.
        TooLittleRoom: the disk does not hold it.
    """
    running = sys.version_info[:2]
    if not PYTHONS[0] <= running <= PYTHONS[1]:
        raise ToolFailed(
            f"{NAME} {VERSION} does not come for Python {running[0]}.{running[1]}",
            hint="run this command with Python 3.10, 3.11 or 3.12",
        )
    folder = cache / "tools" / f"{NAME}-{VERSION}-py{running[0]}.{running[1]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not (folder / READY).is_file():
            _make(folder, report_progress)
    return _opened(folder)


def _make(folder: Path, report_progress: Callable[[str], None]) -> None:
    hint = "free some, or let SEGAGENT_CACHE name a folder on another disk"
    check_disk_space(ROOM, folder.parent, f"the environment of {NAME} takes", hint)
    report_progress(f"making an environment for {NAME} {VERSION} in {folder}")
    log = folder.with_name(f"{folder.name}.log")
    shutil.rmtree(folder, ignore_errors=True)
    steps: tuple[list[str | Path], ...] = (
        [sys.executable, "-m", "venv", folder],
        [_python(folder), *_INSTALL, *PACKAGES],
    )
    try:
        for step in steps:
            if _run(step, log):
                raise ToolFailed(
                    f"the environment of {NAME} {VERSION} cannot be made: {_last_line(log)}",
                    hint=f"is the package index reachable? All that pip said is in {log}",
                )
        (folder / READY).write_text("\n".join(PACKAGES) + "\n", "utf-8")
    finally:
        if not (folder / READY).is_file():
            shutil.rmtree(folder, ignore_errors=True)


_INSTALL = ("-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input")


def _opened(folder: Path) -> Tool:
    python = _python(folder)
    try:
        listed = subprocess.run(
            [python, "-I", "-c", _VERSIONS], capture_output=True, stdin=subprocess.DEVNULL,
            check=False,
        ).stdout  # fmt: skip
        packages = json.loads(listed)
    except (OSError, ValueError):
        packages = {}
    if packages.get(NAME) != VERSION:
        found = f"{NAME} {packages[NAME]}" if NAME in packages else "nothing that works"
        raise ToolFailed(
            f"the environment {folder} holds {found}, not {NAME} {VERSION}",
            hint="delete that folder; the next export makes it anew",
        )
    return Tool(python, dict(sorted(packages.items())))


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _run(command: Sequence[str | Path], log: Path) -> int:
    """Run a program offline as far as models go, and without a GPU; returns its exit code."""
    apart = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        with log.open("wb") as stream:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                env={**os.environ, **apart}, check=False,
            ).returncode  # fmt: skip
    except OSError as error:
        raise ToolFailed(f"{command[0]} cannot be run: {error.strerror}") from error


def _last_line(log: Path) -> str:
    """The line that says most about a failure; programs are foreign, so it is cleaned."""
    lines = log.read_bytes()[-65536:].decode("utf-8", "replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("ERROR")]
    line = (errors or said or ["it said nothing"])[-1]
    return "".join(letter for letter in line if letter.isprintable())[:200]
