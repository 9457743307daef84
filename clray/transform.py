"""Changes of images that differ by task: every pixel of the result is a weighted sum of a few pixels of the image.

A permutation takes one pixel each, a rotation four (bilinear). Shares are whole numbers of 1/65536, so that uint8 images give
the same result, bit for bit, wherever they are computed. The same code runs on NumPy arrays on the host (training data) and on
JAX arrays inside a compiled program (evaluation).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from clray.types import PlacedArray

UNIT = 1 << 16


class Transform(NamedTuple):
    """Leading axes, if any, tell transforms apart. M: pixels that one pixel of the result is made of."""

    index: PlacedArray  # [..., M, height * width] int32: which pixels
    weight: PlacedArray | None  # [..., M, height * width] int32: their shares of 1/65536; None: M = 1, the whole pixel


def transformed(images: Any, transform: Transform) -> Any:
    """Applies one transform to many images; channels move together.

    Args:
        images: [n, D] (channels fastest) or [n, height, width, channels], uint8 or float32.
        transform: without leading axes.

    Returns:
        Images of the same shape and dtype; uint8 results are rounded to the nearest, halves up.
    """
    n_pixels = transform.index.shape[-1]
    pixels = images.reshape(images.shape[0], n_pixels, -1)
    if transform.weight is None:
        return pixels[:, transform.index[0]].reshape(images.shape)
    whole = images.dtype == "uint8"
    total: Any = 0
    for index, weight in zip(transform.index, transform.weight, strict=True):
        taken = pixels[:, index].astype("int32" if whole else "float32")
        total = total + taken * (weight if whole else weight.astype("float32") / UNIT)[:, None]
    return ((total + UNIT // 2) >> 16 if whole else total).astype(images.dtype).reshape(images.shape)
