"""Manifests: what is accepted, what is refused and how it is said."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest

from segagent_rt.bundle.manifest import (
    BundleIndex,
    FileRecord,
    Manifest,
    Variant,
    inside,
    parse,
    read_json,
    to_json,
)
from segagent_rt.errors import ManifestInvalid

MANIFEST = Manifest(
    kind="segmenter",
    family="click_net",
    settings={"side": 256},
    variants={"cpu": Variant("cpu", "fp32", {"encoder": "encoder.onnx"})},
    files={"encoder.onnx": FileRecord(3, "ab")},
)


@dataclass(frozen=True)
class Inner:
    pair: tuple[int, int]
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    share: float
    inner: Inner | None = None
    table: Mapping[str, Inner] | None = None


def test_a_manifest_survives_the_disk(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(to_json(MANIFEST)))
    assert read_json(path, Manifest) == MANIFEST


def test_nested_values_are_built_with_their_types():
    found = parse(
        {
            "kind": "a", "share": 1, "inner": {"pair": [1, 2], "words": ["x"]},
            "table": {"k": {"pair": [3, 4]}},
        },
        Outer, "here",
    )  # fmt: skip
    assert found == Outer("a", 1.0, Inner((1, 2), ("x",)), {"k": Inner((3, 4))})
    assert isinstance(found.share, float)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"kind": "c", "share": 1.0}, 'here: kind: "c" is not one of'),
        ({"kind": "a"}, "here: field `share` is missing"),
        ({"kind": "a", "share": True}, "here: share: true is not float"),
        ({"kind": "a", "share": 1.0, "extra": 1}, "here: unknown field `extra`"),
        ({"kind": "a", "share": 1.0, "inner": {"pair": [1]}}, "here: inner: pair: "),
        ({"kind": "a", "share": 1.0, "inner": {"pair": [1, "2"]}}, "is not int"),
        ([], "here: \\[\\] is not an object"),
    ],
)
def test_what_is_wrong_and_where_is_said(content, said):
    with pytest.raises(ManifestInvalid, match=said):
        parse(content, Outer, "here")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "schema None"),
        ('{"schema": 99}', "schema 99"),
        ("\xff", "JSON"),
    ],
)
def test_files_that_are_no_manifest_are_refused(tmp_path, text, said):
    path = tmp_path / "bundle.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ManifestInvalid, match=said):
        read_json(path, BundleIndex)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "C:\\x", "a\\..\\b"])
def test_no_path_leads_out_of_its_folder(tmp_path, name):
    with pytest.raises(ManifestInvalid, match="leads out"):
        inside(tmp_path, name)


def test_names_below_the_folder_are_found(tmp_path):
    assert inside(tmp_path, "golden/a.npz") == tmp_path / "golden" / "a.npz"
