"""Write into a bundle how much further clicks were measured to add to the first mask."""

from __future__ import annotations

from dataclasses import replace

from segagent_rt.bundle.bundle import Bundle
from segagent_rt.bundle.manifest import BUNDLE_FILE, BundleIndex, LoopGain, read_json, to_json
from segagent_rt.io import atomic_write, json_bytes


def record_loop_gain(bundle: Bundle, measured: dict[str, LoopGain]) -> None:
    """Add measurements to `bundle.json`, by the name of their data set.

    Raises:
        OutputError: the file cannot be written.
    """
    path = bundle.folder / BUNDLE_FILE
    index: BundleIndex = read_json(path, BundleIndex)
    written = replace(index, loop_gain={**index.loop_gain, **measured})
    atomic_write(path, json_bytes(to_json(written), indent=1))
