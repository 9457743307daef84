from __future__ import annotations

import numpy as np
import pytest

from clray.data import pixels
from clray.data.pixels import channel_statistics, transform, transformed_blocks
from clray.errors import ConfigError, DataError
from clray.options import DatasetOptions


def options(**values):
    return DatasetOptions(name="synthetic", **values)


def random_images(*shape, dtype="uint8"):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, shape).astype(np.uint8) if dtype == "uint8" else rng.normal(3.0, 2.0, shape).astype(np.float32)


def triangle_resize(image, height, width):
    """Slow antialiased bilinear resize of one (h, w) image from the definition: triangle weights over the scaled support."""

    def weights(n_in, n_out):
        scale = n_in / n_out
        support = max(scale, 1.0)
        matrix = np.zeros((n_out, n_in))
        for row in range(n_out):
            centre = (row + 0.5) * scale
            matrix[row] = np.maximum(0.0, 1.0 - np.abs((np.arange(n_in) + 0.5 - centre) / support))
            matrix[row] /= matrix[row].sum()
        return matrix

    return weights(image.shape[0], height) @ image.astype(np.float64) @ weights(image.shape[1], width).T


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("size", [(5, 7), (12, 20), (9, 14)])
def test_resize_equals_the_slow_definition(dtype, size):
    images = random_images(3, 9, 14, 3, dtype=dtype)
    got = transform(images, options(resize=size))
    assert (got.shape, got.dtype) == ((3, *size, 3), images.dtype)
    wanted = np.stack([[triangle_resize(image[..., c], *size) for c in range(3)] for image in images]).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got.astype(float), wanted, atol=1.01 if dtype == "uint8" else 1e-4)  # uint8: rounded after each axis


def test_grayscale_weighs_channels_as_luma():
    images = random_images(4, 5, 6, 3)
    got = transform(images, options(grayscale=True))
    assert got.shape == (4, 5, 6, 1)
    below = images @ np.array([0.2989, 0.587, 0.114]) - got[..., 0]  # torch's weights; it rounds down
    assert -1e-3 <= below.min() <= below.max() < 1


def test_pad_adds_zeros_after_resize():
    images = random_images(2, 4, 4, 3) | 1
    got = transform(images, options(resize=6, pad=2, grayscale=True))
    assert got.shape == (2, 10, 10, 1)
    assert (got[:, 2:-2, 2:-2] > 0).all()
    assert got[:, 2:-2, 2:-2].sum() == got.sum()


def test_nothing_asked_for_changes_nothing():
    images = random_images(2, 4, 5, 1)
    np.testing.assert_array_equal(transform(images, options(resize=(4, 5), grayscale=True)), images)


def test_grayscale_of_four_channels_is_refused():
    with pytest.raises(ConfigError, match="needs 3 colour channels"):
        transform(random_images(2, 4, 4, 4), options(grayscale=True))


def test_blocks_together_are_the_whole(monkeypatch):
    images = random_images(23, 4, 4, 1)
    whole = transform(images, options(resize=3))
    monkeypatch.setattr(pixels, "BLOCK", 5)
    np.testing.assert_array_equal(np.concatenate(list(transformed_blocks(images, options(resize=3), "here"))), whole)


def test_pixels_that_are_not_finite_are_named(monkeypatch):
    monkeypatch.setattr(pixels, "BLOCK", 5)
    images = random_images(23, 4, 4, 1, dtype="float32")
    images[17, 2, 3, 0] = np.nan
    with pytest.raises(DataError, match="here: image 17 has"):
        list(transformed_blocks(images, options(), "here"))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_statistics_equal_numpys_on_the_whole(dtype, monkeypatch):
    monkeypatch.setattr(pixels, "BLOCK", 7)
    images = random_images(50, 4, 6, 3, dtype=dtype)
    mean, std = channel_statistics(images)
    as_trained = images.astype(np.float64) / (255 if dtype == "uint8" else 1)
    np.testing.assert_allclose(mean, as_trained.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, as_trained.std(axis=(0, 1, 2)), rtol=1e-6)


def test_statistics_keep_their_digits_where_the_mean_is_large():
    images = (1e4 + random_images(500, 4, 4, 1, dtype="float32")).astype(np.float32)
    _, std = channel_statistics(images)
    np.testing.assert_allclose(std, images.astype(np.float64).std(), rtol=1e-5)


def test_a_constant_channel_has_deviation_one():
    _, std = channel_statistics(np.full((3, 2, 2, 2), 7, np.uint8))
    np.testing.assert_array_equal(std, [1.0, 1.0])
