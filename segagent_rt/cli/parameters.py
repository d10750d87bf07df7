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


def option(help: str, *flags: str, panel: str | None = None, **settings: Any) -> Any:
    """An option with a line and a panel of the help; `settings` are further ones of Typer's."""
    return typer.Option(*flags, help=help, rich_help_panel=panel, **settings)


def number_option(help: str, *flags: str, panel: str | None = None, **bounds: float) -> Any:
    """An option whose value is a finite number from `min` to `max`."""
    return option(help, *flags, panel=panel, callback=finite, **bounds)


BundleOption: TypeAlias = Annotated[
    str | None,
    option("Folder or name of a bundle. Default: the demo bundle.", "--bundle", "-b", panel=MODEL),
]
BundleArgument: TypeAlias = Annotated[
    str | None, typer.Argument(help="Folder or name of a bundle. Default: the demo bundle.")
]
OutputOption: TypeAlias = Annotated[
    Path, option("Folder for the results.", "--output", "-o", panel=RESULTS, readable=False)
]
ReportOption: TypeAlias = Annotated[
    Path | None,
    option(
        "Also write one HTML file with every step as a picture, the worst cases first.",
        "--report",
        panel=RESULTS,
        metavar="FILE.html",
        readable=False,
    ),
]
OverwriteOption: TypeAlias = Annotated[
    bool, option("Also replace files that segagent-rt did not write.", "--overwrite", panel=RESULTS)
]
RestartOption: TypeAlias = Annotated[
    bool,
    option(
        "Start again instead of continuing, and replace files of others.",
        "--overwrite",
        panel=RESULTS,
    ),
]
JsonOption: TypeAlias = Annotated[
    bool, option("Print one JSON document instead of text.", "--json", panel=RESULTS)
]
QuietOption: TypeAlias = Annotated[
    bool,
    option(
        "Print only warnings and errors on stderr.",
        "--quiet",
        "-q",
        panel=RESULTS,
        callback=console.be_quiet,
    ),
]
ThreadsOption: TypeAlias = Annotated[
    int | None, option("CPU threads. Default: one per core.", "--threads", panel=COMPUTE, min=1)
]
BackendOption: TypeAlias = Annotated[
    BackendName,
    option(
        "Backend for the graphs. auto takes the best one that works.", "--backend", panel=COMPUTE
    ),
]
ImagesOption: TypeAlias = Annotated[
    Path | None, option("Folder of the images. Default: beside the data.", "--images", panel=DATA)
]
RootOption: TypeAlias = Annotated[
    Path, option("Folder of data sets that are given by name.", "--root", panel=DATA)
]
MaxClicksOption: TypeAlias = Annotated[
    int,
    option(
        "Largest number of clicks per expression.",
        "--max-clicks",
        panel=SEARCH,
        min=1,
        max=MOST_CLICKS,
    ),
]
RateEveryMaskOption: TypeAlias = Annotated[
    bool,
    option(
        "Also look at masks that the bundle's calibration accepts without a rating.",
        "--rate-every-mask",
        panel=SEARCH,
    ),
]
SkipBadOption: TypeAlias = Annotated[
    bool, option("Skip invalid entries, and list them.", "--skip-bad", panel=DATA)
]
MaskLabelOption: TypeAlias = Annotated[
    int | None,
    option("Value of the object in masks with several values.", "--mask-label", panel=DATA),
]
ValueRangeOption: TypeAlias = Annotated[
    str | None,
    option(
        "Values of black and white in float and 16-bit images, such as 0,65535.",
        "--value-range",
        panel=DATA,
    ),
]
CandidatesOption: TypeAlias = Annotated[
    int,
    option(
        "Clicks to try in each turn. The best-rated one is kept.",
        "--candidates",
        panel=SEARCH,
        min=1,
        max=MOST_CANDIDATES,
    ),
]
TemperatureOption: TypeAlias = Annotated[
    float,
    number_option(
        "Sampling temperature. Used only with --candidates above 1.",
        "--temperature",
        panel=SEARCH,
        min=0.01,
    ),
]
EndpointOption: TypeAlias = Annotated[
    str | None,
    option("URL of a server for the MLLM, with the OpenAI chat API.", "--endpoint", panel=SERVER),
]
ModelOption: TypeAlias = Annotated[
    str | None, option("Name of the model on the server.", "--model", panel=SERVER)
]
ServerOption: TypeAlias = Annotated[
    str,
    option(
        "Kind of server.", "--server", panel=SERVER, metavar="any|openai|ollama|sglang|vllm|..."
    ),
]
PresetOption: TypeAlias = Annotated[
    str | None,
    option(
        "Instruction for a model that the bundle does not know: "
        "qwen3-vl, qwen2.5-vl, segagent, ...",
        "--preset",
        panel=SERVER,
    ),
]
TimeoutOption: TypeAlias = Annotated[
    float,
    number_option(
        "Seconds to wait for each answer of the server.",
        "--timeout",
        panel=SERVER,
        min=0.1,
        max=86400,
    ),
]
AllowHostOption: TypeAlias = Annotated[
    list[str] | None,
    option(
        "Allow images to be sent to this machine. May be repeated.", "--allow-host", panel=SERVER
    ),
]
RayOption: TypeAlias = Annotated[
    str | None,
    option(
        "Distribute the work with Ray: `local`, or the address of a cluster.",
        "--ray",
        panel=COMPUTE,
    ),
]
WorkersOption: TypeAlias = Annotated[
    int | None,
    option(
        "Workers for --ray. Default: one per CPU.",
        "--workers",
        panel=COMPUTE,
        min=1,
        max=MOST_WORKERS,
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
