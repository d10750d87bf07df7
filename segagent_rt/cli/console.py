"""What commands print: data on stdout, talk on stderr, and nothing that steers the terminal.

stdout holds rows of tab-separated fields, or with `--json` one document. Everything that is said
beside goes to stderr, and with `--quiet` only warnings and errors do.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import typer

from segagent_rt.errors import OutputError, SegagentWarning, printable
from segagent_rt.io import dump_json

EVERY_SECOND, EVERY_LINE = 1.0, 30.0
"""Seconds between two reports of progress: on a terminal, and in a log."""

Report: TypeAlias = Callable[[int, int], None]
"""Called with the number of pieces done and to do."""

_quiet = False


def be_quiet(quiet: bool) -> bool:
    """Whether `say` and progress reports print nothing from now on."""
    global _quiet
    _quiet = quiet
    logging.getLogger("segagent_rt").setLevel(logging.ERROR if quiet else logging.NOTSET)
    return quiet


def show(text: object) -> None:
    """Print data on stdout."""
    _print(printable(str(text)), err=False)


def show_row(*fields: object) -> None:
    """Print data on stdout: one line, its fields separated by tabs."""
    _print("\t".join(printable(" ".join(str(each).split("\t")), keep="") for each in fields))


def show_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    _print(dump_json(document))


def say(text: object = "") -> None:
    """Tell something beside the data, on stderr."""
    if not _quiet:
        warn(text)


def warn(text: object) -> None:
    """Tell on stderr what even a quiet command has to say."""
    _print(printable(str(text)), err=True)


@contextmanager
def telling_warnings() -> Iterator[None]:
    """Our own warnings are one line on stderr; those of libraries stay as they are."""
    with warnings.catch_warnings():
        show_other = warnings.showwarning

        def report_progress(
            message: Warning | str, category: type[Warning], *place: Any, **more: Any
        ) -> None:
            if issubclass(category, SegagentWarning):
                warn(f"warning: {message}")
            else:
                show_other(message, category, *place, **more)

        warnings.simplefilter("always", SegagentWarning)
        warnings.showwarning = report_progress
        yield


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 click`, `2 clicks`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def progress(title: str, *, in_logs: bool = True, in_bytes: bool = False) -> Report:
    """What tells how far a long run is: `12 of 340, 3 min left`.

    On a terminal one line changes; in a log, lines follow each other at longer intervals, or there
    are none.

    Args:
        title: stands before each report.
        in_logs: whether anything is told where there is no terminal.
        in_bytes: whether bytes are counted; they are shown in MB.
    """
    if not in_logs and not _on_terminal():
        return lambda done, total: None
    start, said = time.monotonic(), -EVERY_LINE
    report_progress = phases(title)

    def report(done: int, total: int) -> None:
        nonlocal said
        passed = time.monotonic() - start
        if done < total and passed - said < (EVERY_SECOND if _on_terminal() else EVERY_LINE):
            return
        said = passed
        left = passed / done * (total - done) if done else 0.0
        ratio = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if in_bytes else f"{done} of {total}"
        report_progress(f"{ratio}, {in_words(left)} left")
        if done == total:
            end_line()

    return report


def phases(title: str = "", *, every: float = 0.0) -> Callable[[str], None]:
    """What tells which phase a long run is in, as `progress` does.

    Args:
        title: stands before each phase.
        every: seconds between two lines in a log.
    """
    prefix, said = f"{title}: " if title else "", float("-inf")

    def report_progress(phase: str) -> None:
        nonlocal said
        if not _on_terminal() and time.monotonic() - said < every:
            return
        said = time.monotonic()
        if _on_terminal() and not _quiet:
            line = printable(f"{prefix}{phase}", keep="")[:78]
            typer.echo(f"\r{line:78s}", err=True, nl=False)
        elif not _quiet:
            say(f"{prefix}{phase}")

    return report_progress


def clear_line() -> None:
    """Remove a line of progress from a terminal, so that data can be printed there."""
    if _on_terminal() and not _quiet:
        typer.echo(f"\r{'':78s}\r", err=True, nl=False)


def end_line() -> None:
    """End a line of progress on a terminal."""
    if _on_terminal() and not _quiet:
        typer.echo(err=True)


def in_words(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def ask(question: str) -> bool:
    """Ask for consent on a terminal; without a terminal the answer is no."""
    if not (sys.stdin.isatty() and _on_terminal()):
        return False
    return typer.confirm(question, err=True)


def draws_bars() -> bool:
    """Whether a library may draw progress bars on stderr."""
    return _on_terminal() and not _quiet


def flush() -> None:
    """See that all data has left.

    Raises:
        OutputError: it cannot be written.
        BrokenPipeError: nobody reads it any more.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _not_written(error) from error


def forget_stdout() -> None:
    """Write nothing to stdout any more, not even what is left in its buffer at the end."""
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 (a device, no file)
        os.dup2(nothing.fileno(), sys.stdout.fileno())


def _print(text: str, *, err: bool = False) -> None:
    try:
        typer.echo(text, err=err)
    except UnicodeEncodeError:  # a terminal without these letters
        encoding = (sys.stderr if err else sys.stdout).encoding or "ascii"
        typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _not_written(error) from error


def _not_written(error: OSError) -> OutputError:
    forget_stdout()
    return OutputError(
        f"the standard output cannot be written: {error.strerror}", hint="free some space"
    )
