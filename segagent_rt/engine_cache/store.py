"""The engine cache on disk: never a wrong or a half-written engine.

An engine is files with one name, its key: `.plan`, what the library loads; `.npz`, golden inputs
and outputs; `.json`, the record with the hashes of both, written last. What has no record, or not
the bytes that its record names, is not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from segagent_rt.bundle.integrity import is_ours, make_private, read_regular
from segagent_rt.bundle.manifest import SCHEMA, FileRecord, read_json, to_json
from segagent_rt.engine_cache.key import EngineKey, hash_of
from segagent_rt.errors import EngineRefused, FileChanged, ManifestInvalid
from segagent_rt.io import atomic_write, json_bytes


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What is known of an engine: whether it passed its check, and by which figures.

    One that did not has no plan, only the reason in `why`. `milliseconds` are its own and ONNX
    Runtime's on the golden inputs, where they were compared.
    """

    key: EngineKey
    graph: str
    why: str | None
    figures: Mapping[str, float]
    seconds: float
    milliseconds: tuple[float, float] | None = None
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def passed(self) -> bool:
        return self.why is None


class EngineCache:
    """Engines in a folder. Several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: EngineKey, kind: str) -> Path:
        """Where a file of an engine lies."""
        return self._folder / key.graph[:16] / f"{key.digest}.{kind}"

    def find(self, key: EngineKey) -> EngineRecord | None:
        """The record of an engine, None if it was not built, or others may have written it."""
        path = self.path(key, "json")
        try:
            record: EngineRecord | None = read_json(path, EngineRecord) if is_ours(path) else None
        except ManifestInvalid:
            return None
        if record is None:
            return None
        return record if record.key == key else None

    def read(self, record: EngineRecord, kind: str) -> bytes:
        """A file of an engine, byte for byte as it was written.

        Raises:
            EngineRefused: it is not; the engine is forgotten.
        """
        path, known = self.path(record.key, kind), record.files[kind]
        try:
            content = read_regular(path, known.size)
        except FileChanged:
            content = b""
        if (len(content), hashlib.sha256(content).hexdigest()) != (known.size, known.sha256):
            self.forget(record.key)
            raise EngineRefused(
                f"the engine of the {record.graph} is damaged", hint="segagent-rt build"
            )
        return content

    def put(self, record: EngineRecord, files: Mapping[str, bytes]) -> EngineRecord:
        """Write an engine, its record last.

        Raises:
            OutputError: the disk is full, or the folder cannot be written; nothing is kept.
        """
        with suppress(OSError):  # said better when it is written to
            make_private(self.path(record.key, "json").parent)
        described = {
            kind: FileRecord(len(content), hashlib.sha256(content).hexdigest())
            for kind, content in files.items()
        }
        record = dataclasses.replace(record, files=described)
        for kind, content in files.items():
            atomic_write(self.path(record.key, kind), content)
        atomic_write(self.path(record.key, "json"), json_bytes(to_json(record), indent=1))
        return record

    def forget(self, key: EngineKey) -> None:
        """Take an engine out; its record goes first."""
        for kind in ("json", "plan", "npz", "kernels"):
            self.path(key, kind).unlink(missing_ok=True)

    @contextmanager
    def building(self, key: EngineKey) -> Iterator[None]:
        """Only one process builds an engine; another waits here, and then finds it."""
        folder = self.path(key, "lock").parent
        make_private(folder)
        from filelock import FileLock

        with FileLock(self.path(key, "lock")):
            for left in folder.glob(f".{key.digest}.*.partial"):  # of a process that was killed
                left.unlink(missing_ok=True)
            yield

    def has_engine(self, graph: str, library: str) -> bool:
        """Whether a library once built an engine of the graph with this digest that passed; it may
        have been another version of it."""
        return any(
            record.passed and record.key.library.split()[0] == library
            for record in self._records(self._folder / graph[:16])
        )

    def _records(self, folder: Path) -> Iterator[EngineRecord]:
        for path in sorted(folder.glob("*.json")):
            with suppress(ManifestInvalid):
                if is_ours(path):
                    yield read_json(path, EngineRecord)

    def explain_mismatch(self, key: EngineKey) -> str | None:
        """In what an engine of the same graph that is there differs from the one wanted."""
        folder = self.path(key, "json").parent
        if not all(is_ours(path) for path in folder.glob("*.json")):
            return f"others can write in {folder}"
        for other in self._records(folder):
            if other.key.library.split()[0] != key.library.split()[0]:
                continue
            for name in ("library", "gpu", "capability", "driver", "platform", "recipe"):
                built, here = getattr(other.key, name), getattr(key, name)
                if built != here:
                    return f"it was built for the {name} {built}, here it is {here}"
        return None

    def timing(self, key: EngineKey) -> Path:
        """What the builder learnt of this GPU's timing; one file for all graphs."""
        return self._folder / "timing" / hash_of([key.library, key.gpu, key.capability])[:16]
