"""What people should know of a loaded bundle: what it takes, where it runs, what it is for."""

from __future__ import annotations

from typing import Any

from segagent_rt.annotators.mllm import PromptCodec
from segagent_rt.runtime import Runtime


def takes_words(runtime: Runtime) -> bool:
    """Whether expressions can be segmented: an MLLM is loaded, here or behind a server."""
    return "mllm" in runtime.bundle.parts or runtime.endpoint is not None


def known_words(runtime: Runtime) -> tuple[str, ...] | None:
    """Every word that the model knows; None if its language is open, or there is no model."""
    if "mllm" not in runtime.bundle.parts:
        return None
    annotator = runtime.annotator
    return annotator.settings.vocabulary if isinstance(annotator, PromptCodec) else None


def intended_use(runtime: Runtime) -> str:
    """One or two sentences on what the bundle is good for."""
    if not takes_words(runtime):
        return "Cuts out what you click or box. It does not take words."
    if known_words(runtime) is not None:
        return (
            "A demonstration: its language model knows coloured shapes, not the world. "
            "Use it with generated scenes, not with photos."
        )
    return "Takes words, clicks and boxes."


def bundle_card(name: str, runtime: Runtime) -> dict[str, Any]:
    """A loaded bundle as plain data.

    Args:
        name: by which clients choose it.
        runtime: the loaded bundle.
    """
    words, bundle = known_words(runtime), runtime.bundle
    endpoint = runtime.endpoint
    return {
        "name": name,
        "digest": bundle.digest,
        "about": bundle.index.about,
        "use": intended_use(runtime),
        "takes_words": takes_words(runtime),
        "words": None if words is None else list(words),
        "parts": {kind: _part(kind, runtime) for kind in bundle.parts},
        "endpoint": None if endpoint is None else {"model": endpoint.model},
    }


def _part(kind: str, runtime: Runtime) -> dict[str, Any]:
    part = next(part for name, part in runtime.bundle.parts.items() if name == kind)
    origin = part.manifest.provenance
    placed = {
        role.partition(" ")[2]: {"backend": place.backend, "variant": place.variant}
        for role, place in runtime.placements.items()
        if role.startswith(f"{kind} ")
    }
    licence = origin.get("licence")
    return {
        "family": part.manifest.family,
        "graphs": placed,
        "licence": licence if isinstance(licence, str) else None,
        "trained_on": sorted(map(str, origin.get("data_sets") or ())),
    }
