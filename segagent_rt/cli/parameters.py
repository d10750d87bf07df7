"""Options that several commands share, and how clicks are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeAlias, get_args

import typer

from segagent_rt.types import Click

if TYPE_CHECKING:
    from segagent_rt.annotators.endpoint import Endpoint
    from segagent_rt.data.ray_pool import Cluster

BundleOption: TypeAlias = Annotated[
    Optional[str],  # noqa: UP045 (Typer reads the annotation at run time, on Python 3.10 too)
    typer.Option("--bundle", "-b", help="A bundle's folder or name; the shipped one if left out."),
]
OutputOption: TypeAlias = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the results.", readable=False)
]
ThreadsOption: TypeAlias = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--threads", min=1, help="Threads to use; every core if left out."),
]
BackendOption: TypeAlias = Annotated[
    str, typer.Option("--backend", help="auto, cpu, cuda, tensorrt or rtx.")
]
JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of text.")
]
ImagesOption: TypeAlias = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--images", help="Folder of the pictures; beside the data if left out."),
]
RootOption: TypeAlias = Annotated[
    Path, typer.Option("--root", help="Folder of the data sets that are given by name.")
]
SkipBadOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Leave entries out that are not as their format says, and name them."
    ),
]
MaskLabelOption: TypeAlias = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--mask-label", help="The value that is the object, in masks with several."),
]
ValueRangeOption: TypeAlias = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--value-range", help="Black and white in float or 16-bit pictures: 0,65535."),
]
CandidatesOption: TypeAlias = Annotated[
    int, typer.Option("--candidates", min=1, help="Clicks tried at every turn; the best goes on.")
]
TemperatureOption: TypeAlias = Annotated[
    float, typer.Option("--temperature", min=0.01, help="Of the draws, with several candidates.")
]
EndpointOption: TypeAlias = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--endpoint", help="URL of a server that has the MLLM (OpenAI's chat API)."),
]
ModelOption: TypeAlias = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", help="With --endpoint: the model's name there."),
]
ServerOption: TypeAlias = Annotated[
    str, typer.Option("--server", help="Its kind: openai, vllm, trtllm, edge-llm or llama.cpp.")
]
TimeoutOption: TypeAlias = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Seconds to wait for each of its answers.")
]
AllowHostOption: TypeAlias = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--allow-host", help="Another machine that pictures may be sent to."),
]
RayOption: TypeAlias = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--ray", help="Spread the work: `local`, or the address of a Ray cluster."),
]
WorkersOption: TypeAlias = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--workers", min=1, help="Workers of --ray; as many as there are CPUs."),
]

_CLICK = re.compile(r"([+-])?\s*(\d+)\s*,\s*(\d+)")


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


def endpoint_of(
    url: str | None, model: str | None, server: str, timeout: float, hosts: list[str] | None
) -> Endpoint | None:
    """Where the MLLM is, if it is not in this process.

    Raises:
        typer.BadParameter: a URL without a model, or the reverse.
    """
    if url is None and model is None:
        return None
    if not url or not model:
        raise typer.BadParameter("--endpoint and --model go together")
    from segagent_rt.annotators.endpoint import Endpoint

    return Endpoint(url, model, server, timeout, tuple(hosts or ()))


def one_of(kinds: Any, value: str, option: str) -> Any:
    """The value of an option, if it is one of a `Literal`'s.

    Raises:
        typer.BadParameter: it is none.
    """
    *names, last = get_args(kinds)
    if value not in (*names, last):
        raise typer.BadParameter(f"{option} is {', '.join(names)} or {last}, not `{value}`")
    return value


def cluster_of(address: str | None, workers: int | None) -> Cluster:
    """Where `--ray` and `--workers` say to work.

    Raises:
        typer.BadParameter: workers, but no cluster.
    """
    from segagent_rt.data.ray_pool import Cluster

    if workers is not None and address is None:
        raise typer.BadParameter("--workers needs --ray, such as --ray local")
    return Cluster(address, workers)


def telling(title: str) -> Callable[[int, int], None]:
    """Says on stderr how far a long run is, each second at most."""
    from segagent_rt.eval.progress import RemainingTime

    progress = RemainingTime()

    def tell(done: int, total: int) -> None:
        if line := progress.says(done, total):
            typer.echo(f"\r{title}: {line:40s}", err=True, nl=done == total)

    return tell
