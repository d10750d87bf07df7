"""The command line: one small file for each command; only here is anything printed.

stdout is data, stderr is talk. A command's module is imported when that command is called.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

import typer

from segagent_rt import __version__
from segagent_rt.cli import console
from segagent_rt.cli.examples import epilog
from segagent_rt.errors import Cancelled, SegagentError

COMMANDS = {
    "demo": "Segment one object of a packaged image, without any download.",
    "run": "Segment what words describe, or what clicks and boxes show.",
    "serve": "Serve a page for people, and an HTTP API for programs and annotation tools.",
    "refine": "Improve an existing mask.",
    "score": "Rate how well a mask fits its expression.",
    "eval": "Measure the accuracy of a bundle on a data set.",
    "convert": "Convert data sets to other formats, and trajectories to training data.",
    "trajectories": "Record click trajectories from images and masks, as training data.",
    "bench": "Measure latency, accuracy and memory on this machine.",
    "scene": "Draw a generated scene, and print expressions for its objects.",
    "export": "Export published checkpoints to a bundle, and compare it with them.",
    "pull": "Download a bundle from a hub.",
    "push": "Prepare a bundle for a hub, and upload it on request.",
    "bundles": "List the bundles on this machine: exported, downloaded, and shipped.",
    "build": "Build engines for this machine's GPU (TensorRT) or its CPU (OpenVINO).",
    "pack": "Write a bundle as one file.",
    "unpack": "Unpack a bundle that `pack` wrote.",
    "inspect": "Show the content of a bundle: parts, variants, sizes and verified figures.",
    "doctor": "Show which backends work on this machine, and what is missing.",
}
"""Names and summaries: listing them imports no command, so `--help` and `--version` are quick."""

RESUMED_BY = {
    "eval": "run the same command again to continue",
    "trajectories": "run the same command again to continue",
    "export": "run the same command with --resume to continue",
}
"""What keeps the work of a command that was stopped."""

RARELY = 200_000
"""Objects between searches for garbage: importing makes many, and none of it. This, and not
searching what is left at the end, saves a short command a tenth of a second (`benchmarks/cold.py`).
"""

BROKEN_PIPE = 141
"""The exit code of a command whose reader went away, as of one that SIGPIPE ended."""


def main() -> None:
    """Entry point of `segagent-rt`."""
    gc.set_threshold(RARELY)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name of any bytes comes out as it went in
            stream.reconfigure(errors="surrogateescape")
    try:
        with console.telling_warnings():
            build_app(sys.argv[1:])(prog_name="segagent-rt")
    except SegagentError as error:
        fail(error)
    finally:
        gc.freeze()


def fail(error: SegagentError) -> NoReturn:
    """One sentence, a blank line, the hint; then the error's exit code."""
    typer.echo(f"error: {error}", err=True)
    if error.hint:
        typer.echo(f"\nhint: {error.hint}", err=True)
    sys.exit(error.exit_code)


def build_app(arguments: list[str]) -> typer.Typer:
    """The Typer app with the command asked for, or with the names of all of them.

    Shell completion needs the options of all commands, and sets a variable of the environment.
    """
    completing = "_SEGAGENT_RT_COMPLETE" in os.environ
    first = next((each for each in arguments if not each.startswith("-")), "")
    asked = [first] if first in COMMANDS else []
    app = typer.Typer(
        name="segagent-rt",
        help="Say what you want cut out of a photo; get the mask, on your own device.",
        epilog=epilog(""),
        invoke_without_command=True,
        add_completion=not asked,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in asked or COMMANDS:
        if asked or completing:
            _add(app, name)
        else:
            app.command(name, help=COMMANDS[name])(_listed)
    return app


def _add(app: typer.Typer, name: str) -> None:
    """Add a command, with all its options, or a group of commands."""
    from segagent_rt.cli.option_groups import with_all_options

    module = import_module(f"segagent_rt.cli.{name}")
    if hasattr(module, "GROUP"):
        group = typer.Typer(cls=module.GROUP, help=COMMANDS[name], epilog=epilog(name))
        for inner, (command, about) in module.COMMANDS.items():
            ends = epilog(f"{name} {inner}") or epilog(name)
            group.command(inner, help=about, epilog=ends)(_guarded(with_all_options(command), name))
        app.add_typer(group, name=name)
    else:
        about = _paragraphs(f"{COMMANDS[name]}\n\n{module.command.__doc__}")
        add = app.command(name, help=about, short_help=COMMANDS[name], epilog=epilog(name))
        add(_guarded(with_all_options(module.command), name))


def _listed() -> None:
    """Stands for a command where commands are only listed."""
    raise AssertionError("a command that was not asked for was called")


def _paragraphs(text: str) -> str:
    """Each paragraph on one line; the terminal's width says where it breaks."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", is_eager=True, help="Show the version."),
) -> None:
    if version:
        typer.echo(f"segagent-rt {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _guarded(command: Callable[..., None], name: str) -> Callable[..., None]:
    """A command that ends in one sentence when it is stopped, and quietly when nobody reads on."""

    @functools.wraps(command)
    def guarded(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
            console.flush()
        except KeyboardInterrupt:
            raise Cancelled("interrupted", hint=RESUMED_BY.get(name)) from None
        except BrokenPipeError:
            console.forget_stdout()
            sys.exit(BROKEN_PIPE)

    return guarded
