"""The same three objects of two small pictures, in every format."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segagent_rt.draw import png
from segagent_rt.image import mask_to_rle

SIZES = {"meadow": (40, 60), "harbour": (32, 48)}


@dataclass(frozen=True)
class Drawn:
    picture: str
    mask: np.ndarray
    expressions: tuple[str, ...]


def _disc(size, x, y, radius, hole=0):
    rows, columns = np.ogrid[: size[0], : size[1]]
    square = (rows - y) ** 2 + (columns - x) ** 2
    return (square <= radius**2) & (square >= hole**2)


def _block(size, rows, columns):
    mask = np.zeros(size, np.bool_)
    mask[rows, columns] = True
    return mask


DRAWN = (
    Drawn("meadow", _disc(SIZES["meadow"], 18, 20, 11), ("the red circle", "the largest circle")),
    Drawn("meadow", _disc(SIZES["meadow"], 45, 18, 12, 5), ("the blue ring",)),
    Drawn("harbour", _block(SIZES["harbour"], slice(0, 20), slice(8, 30)), ("the big square",)),
)
ALONE = (DRAWN[0], DRAWN[2])
"""One object for each picture, for formats that keep no more."""

FIRST_WORDS = tuple(Drawn(d.picture, d.mask, d.expressions[:1]) for d in DRAWN)


def picture(name: str) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    return rng.integers(0, 256, (*SIZES[name], 3), dtype=np.uint8)


def pictures(folder: Path, kind: str = "jpg") -> None:
    """Write both pictures; the content is PNG whatever the name, readers look at the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SIZES:
        (folder / f"{name}.{kind}").write_bytes(png(picture(name)))


def segagent_document(name: Callable[[str], Any] = lambda stem: f"{stem}.jpg") -> dict[str, Any]:
    data = [
        {
            "image_name": name(drawn.picture),
            "height": drawn.mask.shape[0],
            "width": drawn.mask.shape[1],
            "gt_ann": {
                "object_id": number,
                "caption": list(drawn.expressions),
                "segmentation": mask_to_rle(drawn.mask),
                "bbox": [0.0, 0.0, 1.0, 1.0],
                "area": int(drawn.mask.sum()),
            },
        }
        for number, drawn in enumerate(DRAWN)
    ]
    return {"info": {"args": {}}, "data": data}


def coco_document() -> dict[str, Any]:
    numbers = {name: at for at, name in enumerate(SIZES, 11)}
    return {
        "images": [
            {"id": numbers[name], "file_name": f"{name}.jpg", "height": h, "width": w}
            for name, (h, w) in SIZES.items()
        ],
        "annotations": [
            {
                "id": 100 + at,
                "image_id": numbers[drawn.picture],
                "category_id": 1,
                "caption": list(drawn.expressions),
                "segmentation": mask_to_rle(drawn.mask),
                "iscrowd": 0,
            }
            for at, drawn in enumerate(DRAWN)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


def labelme_document(name: str) -> dict[str, Any]:
    shapes = []
    for drawn in DRAWN:
        if drawn.picture == name:
            rows, columns = (np.flatnonzero(drawn.mask.any(axis)) for axis in (1, 0))
            part = drawn.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            corners = [[columns[0], rows[0]], [columns[-1], rows[-1]]]
            shapes.append(
                {
                    "label": drawn.expressions[0],
                    "points": [[float(n) for n in corner] for corner in corners],
                    "shape_type": "mask",
                    "group_id": None,
                    "mask": base64.b64encode(png(part)).decode(),
                }
            )
    height, width = SIZES[name]
    about = {"imagePath": f"{name}.jpg", "imageHeight": height, "imageWidth": width}
    return {"version": "5.5.0", "shapes": shapes, **about}


def trajectories_document() -> dict[str, Any]:
    """Two clicks for each object: the top half of it, then all."""
    document = segagent_document()
    for record, drawn in zip(document["data"], DRAWN, strict=True):
        row, column = (int(n) for n in np.argwhere(drawn.mask)[0])
        half = drawn.mask.copy()
        half[int(np.median(np.nonzero(drawn.mask)[0])) :] = False
        record["clicks_list"] = [
            {
                "idx": number,
                "coor": [row + number, column],
                "is_positive": True,
                "mask": mask_to_rle(mask),
                "box": [0.0, 0.0, 1.0, 1.0],
                "area": int(mask.sum()),
                "iou": float(mask.sum() / drawn.mask.sum()),
            }
            for number, mask in enumerate((half, drawn.mask))
        ]
    return document


def _write(path: Path, document: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return str(path)


def segagent(folder: Path) -> str:
    pictures(folder)
    return _write(folder / "objects.json", segagent_document())


def split(folder: Path) -> str:
    """SegAgent's file of a split, with COCO's numbers for images."""
    coco = {name: at for at, name in enumerate(SIZES, 581857)}
    images = folder / "mscoco" / "images" / "train2014"
    pictures(images)
    for name, number in coco.items():
        (images / f"{name}.jpg").rename(images / f"COCO_train2014_{number:012d}.jpg")
    _write(folder / "refcoco_val.json", segagent_document(coco.__getitem__))
    return "refcoco_val"


def refer(folder: Path, benchmark: str = "refcocog", part: str = "test") -> str:
    """The folder of the REFER toolkit."""
    document = coco_document()
    pictures(folder)
    _write(folder / benchmark / "instances.json", document)
    references = [
        {
            "ann_id": found["id"],
            "image_id": found["image_id"],
            "split": part,
            "sentences": [{"sent": text} for text in found["caption"]],
        }
        for found in document["annotations"]
    ]
    other = {**references[0], "split": "train"}
    by = "umd" if benchmark == "refcocog" else "unc"
    (folder / benchmark / f"refs({by}).p").write_bytes(pickle.dumps([other, *references]))
    return f"{benchmark}_{part}"


def coco(folder: Path) -> str:
    pictures(folder)
    return _write(folder / "instances.json", coco_document())


def labelme(folder: Path) -> str:
    pictures(folder / "labelled")
    for name in SIZES:
        _write(folder / "labelled" / f"{name}.json", labelme_document(name))
    return str(folder / "labelled")


def trajectories(folder: Path) -> str:
    pictures(folder)
    return _write(folder / "clicks.json", trajectories_document())


def _pairs(folder: Path, shown: str, drawn: str, name: Callable[[Drawn], str]) -> str:
    """A picture, a mask and what is said, in folders of these names."""
    for each in ALONE:
        for place, kind, content in (
            (shown, "jpg", png(picture(each.picture))),
            (drawn, "png", png(each.mask)),
            (shown, "txt", ("\n".join(each.expressions) + "\n").encode()),
        ):
            path = folder / place / f"{name(each)}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return str(folder)


def dis(folder: Path) -> str:
    return _pairs(folder / "DIS-VD", "im", "gt", lambda drawn: f"4#Sports#7#Ball#{drawn.picture}")


def thin(folder: Path) -> str:
    return _pairs(folder / "thin", "images_test", "masks_test", lambda drawn: drawn.picture)


def beside(folder: Path) -> str:
    """As DUTS, ECSSD, FSS and MSRA-10K lie in HQSeg-44K."""
    return _pairs(folder / "DUTS-TE", "", "", lambda drawn: drawn.picture)


EVERY: dict[str, tuple[Callable[[Path], str], tuple[Drawn, ...]]] = {
    "segagent": (segagent, DRAWN),
    "split": (split, DRAWN),
    "refer": (refer, DRAWN),
    "coco": (coco, DRAWN),
    "labelme": (labelme, FIRST_WORDS),
    "trajectories": (trajectories, DRAWN),
    "dis": (dis, ALONE),
    "thin": (thin, ALONE),
    "beside": (beside, ALONE),
}
"""What writes a data set into a folder and says its name, and the objects that are to be read."""
