"""Write into a bundle what was measured of its loop: the gain of further clicks, and from where on
a mask needs no rating."""

from __future__ import annotations

from dataclasses import replace

from segagent_rt.bundle.bundle import Bundle
from segagent_rt.bundle.manifest import (
    BUNDLE_FILE,
    BundleIndex,
    LoopGain,
    UnratedAcceptance,
    read_json,
    to_json,
)
from segagent_rt.io import atomic_write, json_bytes


def record_loop_gain(bundle: Bundle, measured: dict[str, LoopGain]) -> None:
    """Add measurements to `bundle.json`, by the name of their data set.

    Raises:
        OutputError: the file cannot be written.
    """
    index: BundleIndex = read_json(bundle.folder / BUNDLE_FILE, BundleIndex)
    _write(bundle, replace(index, loop_gain={**index.loop_gain, **measured}))


def record_accept_unrated(bundle: Bundle, measured: UnratedAcceptance | None) -> None:
    """Write a calibration into `bundle.json`, or remove the one that is there.

    Raises:
        OutputError: the file cannot be written.
    """
    index: BundleIndex = read_json(bundle.folder / BUNDLE_FILE, BundleIndex)
    _write(bundle, replace(index, accept_unrated=measured))


def _write(bundle: Bundle, index: BundleIndex) -> None:
    atomic_write(bundle.folder / BUNDLE_FILE, json_bytes(to_json(index), indent=1))
