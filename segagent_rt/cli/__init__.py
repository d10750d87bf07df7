"""The command line: one small file for each command; only here is anything printed.

stdout is data, stderr is talk. A command's module is imported when that command is called.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import typer

from segagent_rt import __version__
from segagent_rt.errors import SegagentError, SegagentWarning

COMMANDS = {
    "demo": "cut one object out of a packaged picture",
    "run": "segment what an expression says",
    "refine": "improve a mask that is there already",
    "score": "say how well a mask fits what is said of it",
    "eval": "measure how good a bundle is",
    "convert": "turn data sets into other formats",
    "trajectories": "make click trajectories out of images and masks",
    "bench": "measure latency by stage",
    "scene": "draw a synthetic scene",
    "export": "turn checkpoints into a bundle",
    "build": "build engines for this GPU",
    "inspect": "show what a bundle is",
    "doctor": "show what this machine can do",
}


RARELY = 200_000
"""Objects between searches for garbage: importing makes many, and none of it. This, and not
searching what is left at the end, saves a short command a tenth of a second (`benchmarks/cold.py`).
"""


def main() -> None:
    """Entry point of `segagent-rt`."""
    gc.set_threshold(RARELY)
    try:
        with telling_warnings():
            build_app(sys.argv[1:])(prog_name="segagent-rt")
    except SegagentError as error:
        fail(error)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    finally:
        gc.freeze()


@contextmanager
def telling_warnings() -> Iterator[None]:
    """Our own warnings are one line on stderr; those of libraries stay as they are."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, SegagentWarning):
                typer.echo(f"warning: {message}", err=True)
            else:
                show(message, category, *place, **more)

        warnings.simplefilter("always", SegagentWarning)
        warnings.showwarning = tell
        yield


def fail(error: SegagentError) -> None:
    """One sentence, a blank line, the hint; then the error's exit code."""
    typer.echo(f"error: {error}", err=True)
    if error.hint:
        typer.echo(f"\nhint: {error.hint}", err=True)
    sys.exit(error.exit_code)


def build_app(arguments: list[str]) -> typer.Typer:
    """The Typer app with the command asked for, or with all of them."""
    app = typer.Typer(
        name="segagent-rt",
        help="Say what you want cut out; get the mask, at the edge.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    if arguments[:2] == ["bench", "report"]:
        app.add_typer(import_module("segagent_rt.cli.bench_report").app, name="bench")
        return app
    asked = [name for name in arguments[:1] if name in COMMANDS]
    for name in asked or COMMANDS:
        module = import_module(f"segagent_rt.cli.{name}")
        app.command(name, help=module.__doc__)(module.command)
    return app


def _options(
    version: bool = typer.Option(False, "--version", is_eager=True, help="Show the version."),
) -> None:
    if version:
        typer.echo(f"segagent-rt {__version__}")
        raise typer.Exit
