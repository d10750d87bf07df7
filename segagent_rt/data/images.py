"""Where the pictures of a data set lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from segagent_rt.data.reading import field, from_base64, read_json
from segagent_rt.data.record import Sample
from segagent_rt.image import decode_image, load_image
from segagent_rt.types import RgbImage

COCO_FOLDERS = ("mscoco/images/train2014", "images/mscoco/images/train2014", "train2014")
"""Below the root of the images, as in SegAgent's and LISA's layouts."""


@dataclass(frozen=True, slots=True)
class ImageFolders:
    """Folders to look in, the first one first.

    No name leads out of them: of an absolute path, or one with `..`, only the last part counts.
    """

    folders: tuple[Path, ...]

    def find(self, name: str | int, source: str = "") -> Path:
        """The picture of that name, or the first place where it was looked for.

        A number is a COCO image id; in data whose `source` begins with `refclef`, one of SAIAPR.
        """
        places = [folder / place for folder in self.folders for place in _places(name, source)]
        return next((place for place in places if place.is_file()), places[0])


def read_picture(path: Path) -> RgbImage:
    """The picture of a sample, uint8 [H, W, 3]; of a JSON file the one that labelme put into it.

    Raises:
        ImageUnreadable: it is not there, or cannot be read.
        DataInvalid: the JSON file holds none.
    """
    if path.suffix != ".json":
        return load_image(path)
    where = f"{path}: `imageData`"
    return decode_image(
        from_base64(field(read_json(path), "imageData", str, str(path)), where), where
    )


def missing_images(samples: list[Sample]) -> list[Path]:
    """Pictures that samples need and that are not there, each once, in order."""
    return [path for path in dict.fromkeys(s.image for s in samples) if not path.is_file()]


def _places(name: str | int, source: str) -> list[str]:
    if isinstance(name, int):
        if source.startswith("refclef"):
            numbered = (f"{name // 1000:02d}", str(name // 1000))
            return [f"saiapr_tc-12/{folder}/images/{name}.jpg" for folder in numbered]
        file = f"COCO_train2014_{name:012d}.jpg"
        return [*(f"{folder}/{file}" for folder in COCO_FOLDERS), file]
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        return [path.name]
    found = [str(path)]
    if not path.suffix:
        found.append(f"{path}.jpg")
    if path.name.startswith("COCO_train2014_"):
        found += [f"{folder}/{path.name}" for folder in COCO_FOLDERS]
    return found
