"""Configurations of models: JSON of other people, read field by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.sources.shards import read_object

MOST = 1 << 30
"""No size in a configuration is larger."""

LARGEST = 1e38
"""Every number is smaller than this; nearly the largest of float32."""


@dataclass(frozen=True, slots=True)
class Config:
    """A section of a configuration; `where` is named in errors."""

    fields: Mapping[str, Any]
    where: str

    @staticmethod
    def load(path: Path) -> Config:
        """Read a file.

        Raises:
            CheckpointInvalid: it is missing or not a JSON object.
        """
        return Config(read_object(path), str(path))

    def get(self, name: str, default: Any) -> Any:
        """A field of any kind; null counts as absent."""
        value = self.fields.get(name)
        return default if value is None else value

    def section(self, name: str) -> Config:
        """A nested object; empty if it is not there."""
        found = self.get(name, {})
        if not isinstance(found, dict):
            raise self._wrong(name, "an object")
        return Config(found, f"{self.where}: {name}")

    def size(self, name: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.get(name, default)
        if isinstance(value, list) and len(set(map(str, value))) == 1:  # the same for every axis
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MOST:
            raise self._wrong(name, "a size")
        return value

    def number(self, name: str, default: float) -> float:
        """A number."""
        value = self.get(name, default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not -LARGEST < value < LARGEST:
            raise self._wrong(name, "a number")
        return float(value)

    def text(self, name: str, default: str) -> str:
        """A word."""
        value = self.get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a word")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def sizes(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self.get(name, default)
        if not isinstance(value, (list, tuple)) or not all(isinstance(n, int) for n in value):
            raise self._wrong(name, "a list of whole numbers")
        return tuple(value)

    def colours(self, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """Three numbers, for red, green and blue."""
        value = self.get(name, default)
        right = isinstance(value, (list, tuple)) and len(value) == 3
        if not right or not all(isinstance(n, (int, float)) for n in value):
            raise self._wrong(name, "three numbers")
        red, green, blue = map(float, value)
        return red, green, blue

    def refuse(self, name: str, why: str, hint: str | None = None) -> CheckpointInvalid:
        """The error for a value that is well-formed, but cannot be exported."""
        return CheckpointInvalid(
            f"{self.where}: {name} = {str(self.fields.get(name))[:60]} cannot be exported: {why}",
            hint=hint,
        )

    def _wrong(self, name: str, wanted: str) -> CheckpointInvalid:
        value = str(self.fields.get(name))[:60]
        return CheckpointInvalid(f"{self.where}: {name} = {value} is not {wanted}")


def open_processor(folder: Path) -> Config:
    """The image processor's configuration, from the file that transformers prefers: within the
    whole processor's, else one of its own; empty if there is neither.

    Raises:
        CheckpointInvalid: it is not a JSON object.
    """
    whole, own = folder / "processor_config.json", folder / "preprocessor_config.json"
    if whole.is_file():
        config = Config.load(whole)
        if config.get("image_processor", None) is not None:
            return config.section("image_processor")
    return Config.load(own) if own.is_file() else Config({}, str(folder))
