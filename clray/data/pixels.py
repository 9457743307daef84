"""From raw to prepared pixels: resize, grayscale and pad with torch on CPU, in blocks, and the mean and deviation of channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clray.errors import ConfigError, DataError
from clray.options import DatasetOptions

BLOCK = 2048  # images: bounds the memory of a pass over a data set of any size


def transform(images: np.ndarray, options: DatasetOptions) -> np.ndarray:
    """Resize (bilinear, antialiased), grayscale and pad of one block of images.

    Args:
        images: (n, height, width, channels) uint8 or float32.
        options: whose ``resize``, ``grayscale`` and ``pad`` are applied, in this order.

    Returns:
        (n, height, width, channels) of the new size, same dtype.

    Raises:
        ConfigError: grayscale of images that are neither grey nor RGB.
    """
    size = options.size()
    to_grey = options.grayscale and images.shape[3] != 1
    if to_grey and images.shape[3] != 3:
        raise ConfigError(f"dataset.grayscale needs 3 colour channels (or 1), the images have {images.shape[3]}; leave it out")
    if to_grey or size not in (None, images.shape[1:3]):
        images = _torch_transform(images, size, to_grey)
    if options.pad:
        margin = (options.pad, options.pad)
        images = np.pad(images, ((0, 0), margin, margin, (0, 0)))
    return images


def _torch_transform(images: np.ndarray, size: tuple[int, int] | None, to_grey: bool) -> np.ndarray:
    import torch
    from torchvision.transforms.v2 import functional

    tensor = torch.from_numpy(np.array(images, order="C")).permute(0, 3, 1, 2)
    if size is not None:
        tensor = functional.resize(tensor, list(size), interpolation=functional.InterpolationMode.BILINEAR, antialias=True)
    if to_grey:
        tensor = functional.rgb_to_grayscale(tensor, num_output_channels=1)
    return tensor.permute(0, 2, 3, 1).contiguous().numpy()


def transformed_blocks(images: np.ndarray, options: DatasetOptions, where: str) -> Iterator[np.ndarray]:
    """``transform`` over a whole split, block by block, in order.

    Raises:
        DataError: a float image has values that are not finite; the message names ``where`` and the image.
    """
    for start in range(0, len(images), BLOCK):
        block = transform(images[start : start + BLOCK], options)
        if block.dtype != np.uint8:
            finite = np.isfinite(block).all(axis=(1, 2, 3))
            if not finite.all():
                raise DataError(f"{where}: image {start + int(np.argmin(finite))} has values that are NaN or infinite; remove or repair it")
        yield block


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (divided by n) of each channel, of pixels as training sees them: uint8 scaled to [0, 1], floats as they are.

    Args:
        images: (n, height, width, channels) uint8 or float32.

    Returns:
        mean, std: (channels,) float32 each. A constant channel gets deviation 1, so that dividing by it is harmless.
    """
    mean, variance = (_uint8_moments if images.dtype == np.uint8 else _float_moments)(images)
    std = np.sqrt(variance)
    return mean.astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32)


def _uint8_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    channels = images.shape[3]
    histogram = np.zeros((channels, 256), np.int64)
    for block in _blocks(images):
        for channel in range(channels):
            histogram[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    share = histogram / histogram.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255.0
    mean = share @ values
    return mean, (share * (values - mean[:, None]) ** 2).sum(axis=1)


def _float_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Two passes: one pass over sums of squares loses all digits where the mean is large against the deviation.
    n = images[..., 0].size
    mean = sum(block.sum(axis=(0, 1, 2), dtype=np.float64) for block in _blocks(images)) / n
    squares = sum(((block - mean) ** 2).sum(axis=(0, 1, 2)) for block in _blocks(images))
    return mean, squares / n


def _blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), BLOCK):
        yield np.asarray(images[start : start + BLOCK])
