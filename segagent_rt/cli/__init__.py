"""The command line: one small file for each command; only here is anything printed.

stdout is data, stderr is talk. A command's module is imported when that command is called.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

import typer

from segagent_rt import __version__
from segagent_rt.cli import console
from segagent_rt.cli.examples import epilog
from segagent_rt.errors import Cancelled, SegagentError

COMMANDS = (
    "demo", "run", "serve", "refine", "score", "eval", "convert", "trajectories", "bench", "scene",
    "export", "pull", "push", "bundles", "build", "pack", "unpack", "inspect", "doctor",
)  # fmt: skip

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
    """The Typer app with the command asked for, or with all of them."""
    asked = [name for name in arguments[:1] if name in COMMANDS]
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
        module = import_module(f"segagent_rt.cli.{name}")
        if hasattr(module, "GROUP"):
            group = typer.Typer(cls=module.GROUP, help=module.__doc__, epilog=epilog(name))
            for inner, (command, about) in module.COMMANDS.items():
                ends = epilog(f"{name} {inner}") or epilog(name)
                group.command(inner, help=about, epilog=ends)(_guarded(command, name))
            app.add_typer(group, name=name)
        else:
            about = _paragraphs(f"{module.__doc__}\n\n{module.command.__doc__}")
            command = app.command(name, help=about, short_help=module.__doc__, epilog=epilog(name))
            command(_guarded(module.command, name))
    return app


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
