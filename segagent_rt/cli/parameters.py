"""Options that several commands share, which of them go together, and how clicks are written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import typer

from segagent_rt.cli import console
from segagent_rt.types import Box, Click

MODEL, COMPUTE, SERVER = "Model", "Compute", "Server of the MLLM"
SEARCH, DATA, RESULTS = "Clicks", "Data", "Results"
"""Panels of the help."""

MOST_CLICKS, MOST_CANDIDATES, MOST_WORKERS, MOST_SCENES = 1000, 1000, 1000, 1_000_000
"""Largest numbers of options that say how much is to be done: more would never end."""

BackendName: TypeAlias = Literal[
    "auto", "cpu", "openvino", "cuda", "tensorrt", "rtx", "tensorrt-ep", "nv-tensorrt-rtx"
]


def finite(value: float | None) -> float | None:
    """The value of an option, unless it is infinite or not a number.

    Raises:
        typer.BadParameter: it is.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def number_option(
    *flags: str,
    help: str,
    panel: str | None = None,
    min: float | None = None,
    max: float | None = None,
) -> Any:
    """An option whose value is a finite number from `min` to `max`."""
    return typer.Option(*flags, min=min, max=max, callback=finite, help=help, rich_help_panel=panel)


BundleOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--bundle",
        "-b",
        help="Folder or name of a bundle. Default: the demo bundle.",
        rich_help_panel=MODEL,
    ),
]
BundleArgument: TypeAlias = Annotated[
    str | None, typer.Argument(help="Folder or name of a bundle. Default: the demo bundle.")
]
OutputOption: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="Folder for the results.", readable=False, rich_help_panel=RESULTS
    ),
]
ReportOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Also write one HTML file with every step as a picture, the worst cases first.",
        readable=False,
        rich_help_panel=RESULTS,
    ),
]
OverwriteOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Also replace files that segagent-rt did not write.",
        rich_help_panel=RESULTS,
    ),
]
RestartOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Start again instead of continuing, and replace files of others.",
        rich_help_panel=RESULTS,
    ),
]
JsonOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON document instead of text.", rich_help_panel=RESULTS
    ),
]
QuietOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print only warnings and errors on stderr.",
        callback=console.be_quiet,
        rich_help_panel=RESULTS,
    ),
]
ThreadsOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="CPU threads. Default: one per core.", rich_help_panel=COMPUTE
    ),
]
BackendOption: TypeAlias = Annotated[
    BackendName,
    typer.Option(
        "--backend",
        help="Backend for the graphs. auto takes the best one that works.",
        rich_help_panel=COMPUTE,
    ),
]
ImagesOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--images", help="Folder of the images. Default: beside the data.", rich_help_panel=DATA
    ),
]
RootOption: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--root", help="Folder of data sets that are given by name.", rich_help_panel=DATA
    ),
]
MaxClicksOption: TypeAlias = Annotated[
    int,
    typer.Option(
        "--max-clicks",
        min=1,
        max=MOST_CLICKS,
        help="Largest number of clicks per expression.",
        rich_help_panel=SEARCH,
    ),
]
SkipBadOption: TypeAlias = Annotated[
    bool,
    typer.Option("--skip-bad", help="Skip invalid entries, and list them.", rich_help_panel=DATA),
]
MaskLabelOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--mask-label",
        help="Value of the object in masks with several values.",
        rich_help_panel=DATA,
    ),
]
ValueRangeOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--value-range",
        help="Values of black and white in float and 16-bit images, such as 0,65535.",
        rich_help_panel=DATA,
    ),
]
CandidatesOption: TypeAlias = Annotated[
    int,
    typer.Option(
        "--candidates",
        min=1,
        max=MOST_CANDIDATES,
        help="Clicks to try in each turn. The best-rated one is kept.",
        rich_help_panel=SEARCH,
    ),
]
TemperatureOption: TypeAlias = Annotated[
    float,
    number_option(
        "--temperature",
        min=0.01,
        help="Sampling temperature. Used only with --candidates above 1.",
        panel=SEARCH,
    ),
]
EndpointOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        help="URL of a server for the MLLM, with the OpenAI chat API.",
        rich_help_panel=SERVER,
    ),
]
ModelOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--model", help="Name of the model on the server.", rich_help_panel=SERVER),
]
ServerOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--server",
        help="Kind of server.",
        metavar="any|openai|ollama|sglang|vllm|...",
        rich_help_panel=SERVER,
    ),
]
PresetOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Instruction for a model that the bundle does not know: "
        "qwen3-vl, qwen2.5-vl, segagent, ...",
        rich_help_panel=SERVER,
    ),
]
TimeoutOption: TypeAlias = Annotated[
    float,
    number_option(
        "--timeout",
        min=0.1,
        max=86400,
        help="Seconds to wait for each answer of the server.",
        panel=SERVER,
    ),
]
AllowHostOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        help="Allow images to be sent to this machine. May be repeated.",
        rich_help_panel=SERVER,
    ),
]
RayOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Distribute the work with Ray: `local`, or the address of a cluster.",
        rich_help_panel=COMPUTE,
    ),
]
WorkersOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=MOST_WORKERS,
        help="Workers for --ray. Default: one per CPU.",
        rich_help_panel=COMPUTE,
    ),
]

NEEDS: Mapping[str, str] = {
    "model": "endpoint",
    "server": "endpoint",
    "timeout": "endpoint",
    "allow_host": "endpoint",
    "preset": "endpoint",
    "workers": "ray",
    "temperature": "candidates",
    "weights": "against",
}
"""Options that mean nothing unless another one is given a value of its own."""

_CLICK = re.compile(r"([+-])?\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})")
_BOX = re.compile(r"\s*,\s*".join([r"([0-9]{1,9})"] * 4))


def check_options(
    context: typer.Context, mode: str = "", only_with: Mapping[str, tuple[str, ...]] | None = None
) -> None:
    """Refuse options that were given and cannot have an effect.

    Args:
        context: of the command.
        mode: what the command is asked to do, in the words of a message.
        only_with: for options by parameter name, the modes in which they have an effect.

    Raises:
        typer.BadParameter: one does not apply, or lacks the option that it belongs to.
    """
    for name in context.params:
        modes = (only_with or {}).get(name)
        if modes is not None and mode not in modes and _given(context, name):
            raise typer.BadParameter(
                f"{_flag(context, name)} applies to {' and '.join(modes)}, not to {mode}"
            )
        needed = NEEDS.get(name)
        if needed in context.params and _given(context, name) and not _set(context, needed):
            raise typer.BadParameter(
                f"{_flag(context, name)} has no effect without {_flag(context, needed)}"
            )


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _set(context: typer.Context, name: str) -> bool:
    """Whether an option has another value than it has by itself."""
    default = next(p.default for p in context.command.params if p.name == name)
    return bool(context.params[name] != default)


def _flag(context: typer.Context, name: str) -> str:
    return next(p.opts[0] for p in context.command.params if p.name == name)


def parse_range(text: str | None) -> tuple[float, float] | None:
    """`0,4095` says that 0 is black and 4095 white.

    Raises:
        typer.BadParameter: anything else.
    """
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise typer.BadParameter(f"`{text}` is not a range of values; write 0,65535") from None
    return low, high


def parse_click(text: str) -> Click:
    """`+120,80` is a positive click at x 120, y 80; `-30,40` a negative one.

    Raises:
        typer.BadParameter: anything else.
    """
    match = _CLICK.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"`{text}` is not a click; write +120,80 or -30,40")
    return Click(int(match[2]), int(match[3]), positive=match[1] != "-")


def parse_box(text: str | None) -> Box | None:
    """`40,30,200,180` is the box from x 40, y 30 to x 200, y 180.

    Raises:
        typer.BadParameter: anything else.
    """
    if text is None:
        return None
    match = _BOX.fullmatch(text.strip())
    box = None if match is None else Box(*(int(number) for number in match.groups()))
    if box is None or box.x0 >= box.x1 or box.y0 >= box.y1:
        raise typer.BadParameter(
            f"`{text}` is not a box; write left,top,right,bottom, such as 40,30,200,180"
        )
    return box


def check_text(texts: list[str]) -> list[str]:
    """Expressions that can be passed on.

    Raises:
        InputError: one is not UTF-8.
    """
    from segagent_rt.errors import ExpressionRefused

    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ExpressionRefused(
                f"the expression `{text}` is not UTF-8", hint="set the terminal to UTF-8"
            ) from None
    return texts


def one_of(kinds: Any, value: str, option: str) -> Any:
    """The value of an option that may be repeated, if it is one of a `Literal`'s.

    Raises:
        typer.BadParameter: it is none.
    """
    *names, last = get_args(kinds)
    if value not in (*names, last):
        raise typer.BadParameter(f"{option} is {', '.join(names)} or {last}, not `{value}`")
    return value
