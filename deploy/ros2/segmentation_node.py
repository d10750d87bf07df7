"""A ROS 2 node that segments one object of an image, by words, points or a box: an example.

    colcon build --packages-select segagent_rt_msgs && . install/setup.sh
    python3 deploy/ros2/segmentation_node.py --ros-args -p bundle:=photo

It offers `~/segment` of the type `segagent_rt_msgs/srv/Segmentation`. The last image is kept
encoded, so further points on it are quick.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

import segagent_rt
from segagent_rt.errors import InputError, SegagentError
from segagent_rt.runtime import Canvas, Runtime
from segagent_rt.types import Box, Click, Mask, ObjectPrompt, RgbImage, Trajectory

CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC1": 1, "8UC3": 3}
"""Encodings of sensor_msgs/Image that are taken, with their bytes per pixel. 8UC3 is BGR."""

MOST_PIXELS = 50_000_000
NOT_RATED = -1.0


class ImageSegmenter:
    """Answers requests for one runtime.

    Args:
        runtime: what segments.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._opened: tuple[bytes, Canvas] | None = None

    def answer(self, request: Any, response: Any) -> Any:
        """Fill a response of `Segmentation`.

        Args:
            request: with `image`, `expression`, `query_points`, `query_labels` and `boxes`.
            response: gets `success`, `message`, `mask` and `score`.

        Returns:
            The response.
        """
        try:
            image = rgb_of(request.image)
            prompt = prompt_of(request, image.shape[:2])
            (found,) = self._canvas(image).annotate_prompts([prompt])
        except SegagentError as error:
            response.success, response.message = False, str(error)
            return response
        made = found.prediction
        mask = np.zeros(image.shape[:2], np.bool_) if made is None else made.mask()
        response.success = bool(mask.any())
        response.message = "" if response.success else "no object was found"
        response.score = score_of(found)
        fill_mask(response.mask, mask, request.image.header)
        return response

    def _canvas(self, image: RgbImage) -> Canvas:
        """The image, encoded; the one of the last request is kept."""
        digest = hashlib.sha256(image).digest() + repr(image.shape).encode()
        if self._opened is None or self._opened[0] != digest:
            self._opened = digest, self._runtime.open(image)
        return self._opened[1]


def rgb_of(message: Any) -> RgbImage:
    """The pixels of a sensor_msgs/Image, uint8 [H, W, 3] RGB.

    Raises:
        InputError: its encoding is not taken, or its sizes do not fit each other.
    """
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        raise InputError(f"images of the encoding {message.encoding} are not taken")
    height, width, step = int(message.height), int(message.width), int(message.step)
    if not 0 < height * width <= MOST_PIXELS or height < 1:
        raise InputError("the image is empty or too large")
    data = np.frombuffer(bytes(message.data), np.uint8)
    if step < width * channels or data.size < step * height:
        raise InputError("the image holds fewer bytes than its size says")
    rows = data[: step * height].reshape(height, step)[:, : width * channels]
    pixels = rows.reshape(height, width, channels)
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    reverse = message.encoding.startswith("bgr") or message.encoding == "8UC3"
    return np.ascontiguousarray(pixels[..., 2::-1] if reverse else pixels[..., :3])


def prompt_of(request: Any, size: tuple[int, ...]) -> ObjectPrompt:
    """What says which object is meant.

    Args:
        request: of `Segmentation`.
        size: of the image, height and width.

    Raises:
        InputError: nothing does, or points and labels differ in number.
    """
    if len(request.query_points) != len(request.query_labels):
        raise InputError("there are not as many labels as points")
    pairs = zip(request.query_points, request.query_labels, strict=True)
    clicks = tuple(Click(int(p.x), int(p.y), positive=label == 1) for p, label in pairs)
    box = box_of(request.boxes, size)
    if not (clicks or box or request.expression.strip()):
        raise InputError("the request has neither words nor points nor a box")
    return ObjectPrompt(request.expression, clicks, box)


def box_of(boxes: Sequence[Any], size: tuple[int, ...]) -> Box | None:
    """The first of some vision_msgs/BoundingBox2D, cut off at the border of the image."""
    if not boxes:
        return None
    first = boxes[0]
    centre = getattr(first.center, "position", first.center)  # vision_msgs 4, and older
    ends = [
        (centre.x - first.size_x / 2, size[1]),
        (centre.y - first.size_y / 2, size[0]),
        (centre.x + first.size_x / 2, size[1]),
        (centre.y + first.size_y / 2, size[0]),
    ]
    return Box(*(min(max(round(end), 0), most - 1) for end, most in ends))


def score_of(found: Trajectory) -> float:
    """The model's rating of the mask, else the segmenter's estimate."""
    made = found.prediction
    score = made.score if found.rating is None and made is not None else found.rating
    return NOT_RATED if score is None else float(score)


def fill_mask(message: Any, mask: Mask, header: Any) -> None:
    """Write a mask, bool [H, W], into a sensor_msgs/Image."""
    message.header = header
    message.height, message.width = mask.shape
    message.encoding, message.is_bigendian, message.step = "mono8", 0, mask.shape[1]
    message.data = (mask.astype(np.uint8) * 255).tobytes()


def main() -> None:
    """Run the node until it is stopped."""
    import rclpy
    from rclpy.node import Node
    from segagent_rt_msgs.srv import Segmentation

    rclpy.init()
    node = Node("segagent_rt")
    bundle = node.declare_parameter("bundle", "photo").value
    backend = node.declare_parameter("backend", "auto").value
    with segagent_rt.load(bundle, backend=backend) as runtime:
        node.create_service(Segmentation, "~/segment", ImageSegmenter(runtime).answer)
        node.get_logger().info(f"segments with the bundle {bundle}")
        try:
            rclpy.spin(node)
        except KeyboardInterrupt:
            pass
        finally:
            node.destroy_node()
            rclpy.try_shutdown()


if __name__ == "__main__":
    main()
