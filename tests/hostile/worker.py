"""A process that runs cases, one after the other, and says what each of them did."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import tempfile
import traceback
from functools import lru_cache
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.hostile.case import Case

MOST_MEMORY = 1536 << 20
"""Bytes that a case may take."""

STOPPED_AT = 12 << 30
"""Bytes of addresses after which an allocation fails, to protect the machine. Libraries reserve
many more than they use."""

_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def serve(connection: Connection, root: str) -> None:
    """Answer each kind and number of a case with a list of what is wrong, and the bytes it took."""
    os.environ["SEGAGENT_CACHE"] = str(Path(root, "cache"))
    resource.setrlimit(resource.RLIMIT_AS, (STOPPED_AT, STOPPED_AT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _keep_graphs()
    cases = lru_cache(lambda kind: import_module(f"tests.hostile.{kind}").cases())
    _run(Case("warm-up", lambda folder: ["--version"], (0,)), Path(root))
    connection.send("ready")
    while (asked := connection.recv()) is not None:
        kind, number = asked
        connection.send(_run(cases(kind)[number], Path(root)))


def _run(case: Case, root: Path) -> tuple[list[str], int]:
    folder = Path(tempfile.mkdtemp(dir=root))
    _forget_peak()
    said, code = _captured(case, folder)
    peak = _peak()
    problems = _judge(case, code, said) + _check_results(folder)
    if peak > MOST_MEMORY:
        problems.append(f"it took {peak >> 20} MiB")
    os.chdir(root)
    shutil.rmtree(folder, ignore_errors=True)
    return problems, peak


def _judge(case: Case, code: int | None, said: str) -> list[str]:
    problems = []
    if code is None or "Traceback (most recent call last)" in said:
        problems.append(f"a traceback: {said[-1500:]}")
    elif code not in case.codes:
        problems.append(f"exit code {code}, not one of {list(case.codes)}: {said[-300:]}")
    elif code == 1 and "error: " not in said:
        problems.append(f"no sentence: {said[-300:]}")
    if _STEERS.search(said):
        problems.append(f"it steers the terminal: {said[-300:]!r}")
    if len(said) > 20_000:
        problems.append(f"it says {len(said)} characters")
    return problems


def _captured(case: Case, folder: Path) -> tuple[str, int | None]:
    """What was printed, by native code too, and the exit code; None after any other exception."""
    from segagent_rt.cli import main
    from segagent_rt.errors import SegagentError

    log = folder.with_suffix(".log")
    sys.stdout.flush()
    kept, kept_names = [os.dup(1), os.dup(2)], sys.argv
    target = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for number in (1, 2):
        os.dup2(target, number)
    os.close(target)
    os.chdir(folder)
    code: int | None = None
    try:
        arguments = case.action(folder)
        if arguments is None:
            code = 0
        else:
            sys.argv = ["segagent-rt", *map(str, arguments)]
            main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except SegagentError as error:
        print(f"error: {error}")
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.argv = kept_names
        for stream, number, old in zip((sys.stdout, sys.stderr), (1, 2), kept, strict=True):
            stream.flush()
            os.dup2(old, number)
            os.close(old)
    said = log.read_text("utf-8", "surrogateescape")
    log.unlink()
    return said, code


def _check_results(folder: Path) -> list[str]:
    """Nothing is left half written, and no document of ours has a NaN."""
    from segagent_rt.io import parse_json

    problems = [f"{path} was left" for path in folder.rglob("*.partial")]
    for path in folder.glob("out/*.json"):
        try:
            parse_json(path.read_bytes())
        except ValueError as error:
            problems.append(f"{path.name}: {error}")
    return problems


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) << 10


def _keep_graphs() -> None:
    """The demo bundle's graphs are loaded once; with its own bundle a case loads it every time."""
    from segagent_rt import runtime as runtimes

    load, opened = runtimes.load, dict[str, Any]()

    def load_once(bundle: Any = None, **options: Any) -> Any:
        if bundle is not None:
            return load(bundle, **options)
        key = repr(sorted(options.items()))
        if key not in opened:
            opened[key] = load(bundle, **options)
            opened[key].close = lambda: None
        return opened[key]

    runtimes.load = load_once
