"""Groups of options that several commands share, and `--quiet`, which every command has.

A command that takes a group as a parameter has the group's options, and gets their values as one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import typer

from segagent_rt.cli.parameters import (
    AllowHostOption,
    BackendOption,
    CandidatesOption,
    EndpointOption,
    ImagesOption,
    MaskLabelOption,
    MaxClicksOption,
    ModelOption,
    PresetOption,
    QuietOption,
    RateEveryMaskOption,
    RayOption,
    RootOption,
    ServerOption,
    SkipBadOption,
    TemperatureOption,
    ThreadsOption,
    TimeoutOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from segagent_rt.annotators.endpoint import Endpoint
    from segagent_rt.data.ray_pool import Cluster
    from segagent_rt.data.sources import Places
    from segagent_rt.search import SearchConfig


class ComputeOptions(NamedTuple):
    """Where graphs run."""

    backend: BackendOption = "auto"
    threads: ThreadsOption = None


class SearchOptions(NamedTuple):
    """How many clicks are made, and of how many each is chosen."""

    max_clicks: MaxClicksOption = 7
    candidates: CandidatesOption = 1
    temperature: TemperatureOption = 1.0
    rate_every_mask: RateEveryMaskOption = False

    def config(self, **rules: Any) -> SearchConfig:
        """The search that the options ask for; `rules` are further ones of `StoppingRules`."""
        from segagent_rt.loop import StoppingRules
        from segagent_rt.search import SearchConfig

        if self.rate_every_mask:
            rules["accept_unrated"] = False
        stopping = StoppingRules(self.max_clicks, **rules)
        return SearchConfig(stopping, self.candidates, self.temperature)


class RayOptions(NamedTuple):
    """Where the work of many images is done."""

    ray: RayOption = None
    workers: WorkersOption = None

    def cluster(self) -> Cluster:
        """Where the options say to work."""
        from segagent_rt.data.ray_pool import Cluster

        return Cluster(self.ray, self.workers)


class DataOptions(NamedTuple):
    """How data sets are found and read."""

    images: ImagesOption = None
    skip_bad: SkipBadOption = False
    mask_label: MaskLabelOption = None
    root: RootOption = Path()

    def places(self) -> Places:
        """Where the options say that things lie."""
        from segagent_rt.data.sources import Places

        return Places(self.root, self.images, self.skip_bad, self.mask_label)


class ServerOptions(NamedTuple):
    """The server of the MLLM, if one runs it."""

    endpoint: EndpointOption = None
    model: ModelOption = None
    server: ServerOption = "any"
    timeout: TimeoutOption = 120.0
    allow_host: AllowHostOption = None
    preset: PresetOption = None

    def where(self) -> Endpoint | None:
        """Where the MLLM is, if it is not in this process.

        Raises:
            typer.BadParameter: a URL without a model.
        """
        if self.endpoint is None:
            return None
        if not self.endpoint or not self.model:
            raise typer.BadParameter("--endpoint and --model go together")
        from segagent_rt.annotators.endpoint import Endpoint

        hosts = tuple(self.allow_host or ())
        return Endpoint(self.endpoint, self.model, self.server, self.timeout, hosts, self.preset)


GROUPS = (ComputeOptions, SearchOptions, RayOptions, DataOptions, ServerOptions)


def with_all_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer reads it: a parameter for every option of its groups, and `--quiet`."""
    groups, parameters = dict[str, Any](), list[inspect.Parameter]()
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if parameter.annotation in GROUPS:
            groups[name] = parameter.annotation
            defaults, kinds = (
                groups[name]._field_defaults,
                get_type_hints(groups[name], None, None, True),
            )
            parameters += [_option(each, kinds[each], defaults[each]) for each in defaults]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    parameters.append(_option("quiet", QuietOption, False))

    @functools.wraps(command)
    def called(*, quiet: bool, **values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(*(values.pop(each) for each in group._fields))
        command(**values)

    vars(called)["__signature__"] = inspect.Signature(parameters)
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


def _option(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
