"""What encoders see, against the published preprocessing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segagent_rt.segmenters.sam import SamSettings
from segagent_rt.segmenters.sam_frame import Frame, pixels

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil  # noqa: E402

pytestmark = pytest.mark.export

MEAN, STD = SamSettings().mean, SamSettings().std


@pytest.mark.parametrize("size", [(48, 64), (1500, 700), (333, 1024), (64, 3000)])
def test_sam_sees_what_transformers_shows_it(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = SamImageProcessorPil()(image, return_tensors="np")["pixel_values"]
    found = pixels(image, Frame(size, 1024, "longest"), MEAN, STD)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("size", [(48, 64), (1500, 700), (333, 1024), (64, 3000)])
def test_sam_2_sees_what_torchvision_would_show_it(size: tuple[int, int]) -> None:
    """transformers resizes bytes with torchvision, which calls this function of torch.

    The filter is the same; both round after each axis, in another order when one axis grows and
    the other shrinks: one level in 255 at most, and neither nearer to the exact value.
    """
    image: Any = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None],
        (1024, 1024),
        mode="bilinear",
        antialias=True,
    )
    found = pixels(image, Frame(size, 1024, "squash"), (0.0,) * 3, (1.0,) * 3)
    apart = np.abs(found - resized.numpy().astype(np.float32))
    assert apart.max() <= 1
    assert apart.mean() < 0.3
