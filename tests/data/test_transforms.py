"""Permutations and rotations: drawn per task and repeat, exact on uint8, and the same on every side."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torchvision.transforms.functional import InterpolationMode, rotate

from clray.config import Sequence
from clray.data.transforms import draw_transforms, rotation
from clray.transform import UNIT, Transform, transformed

SHAPE = (6, 7, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, *SHAPE)).astype(np.uint8)
PERMUTED = Sequence(n_tasks=4, classes_per_task=10, policy="permuted")
ROTATED = Sequence(n_tasks=4, classes_per_task=10, policy="rotated")


@pytest.mark.parametrize("sequence", [PERMUTED, ROTATED], ids=["permuted", "rotated"])
def test_a_repeat_alone_equals_its_slice_and_a_longer_sequence_begins_with_the_shorter(sequence: Sequence) -> None:
    def drawn(repeats: list[int], **changes: object) -> np.ndarray:
        found = draw_transforms(sequence.model_copy(update=changes), SHAPE, 3, repeats)
        (array,) = [part for part in found if part is not None]
        return array

    whole = drawn([0, 1, 5])
    np.testing.assert_array_equal(drawn([5])[:, 0], whole[:, 2])
    np.testing.assert_array_equal(drawn([0, 1, 5], n_tasks=2), whole[:2])
    np.testing.assert_array_equal(drawn([0, 1, 5], keep_first=True)[1:], whole[1:])
    assert len({row.tobytes() for task in whole for row in np.ascontiguousarray(task)}) == 12


def test_a_permutation_moves_every_pixel_once_with_its_channels() -> None:
    found = draw_transforms(PERMUTED, SHAPE, 3, [0, 1])
    assert found.permutations is not None
    assert found.permutations.dtype == np.int32
    np.testing.assert_array_equal(np.sort(found.permutations), np.broadcast_to(np.arange(42), (4, 2, 42)))
    table = found.table([2], SHAPE)
    assert table is not None
    for repeat in range(2):
        one = Transform(table.index[repeat, 0], None)
        wanted = IMAGES.reshape(5, 42, 3)[:, found.permutations[2, repeat]].reshape(IMAGES.shape)
        np.testing.assert_array_equal(transformed(IMAGES, one), wanted)
        np.testing.assert_array_equal(transformed(IMAGES.reshape(5, -1), one), wanted.reshape(5, -1))


def test_the_first_task_is_kept_where_asked_and_angles_are_those_listed() -> None:
    kept = draw_transforms(PERMUTED.model_copy(update={"keep_first": True}), SHAPE, 3, [0, 1]).permutations
    assert kept is not None
    np.testing.assert_array_equal(kept[0], np.broadcast_to(np.arange(42), (2, 42)))
    listed = Sequence(n_tasks=2, classes_per_task=10, policy="rotated", angles=(0, 45.5))
    np.testing.assert_array_equal(draw_transforms(listed, SHAPE, 3, [4, 0]).angles, [[0, 0], [45.5, 45.5]])
    drawn = draw_transforms(Sequence(n_tasks=200, classes_per_task=10, policy="rotated", angle_range=(-20, 40)), SHAPE, 3, [0]).angles
    assert drawn is not None
    assert (drawn >= -20).all()
    assert (drawn < 40).all()
    assert abs(drawn.mean() - 10) < 5 * 60 / np.sqrt(12 * 200)


@pytest.mark.parametrize("degrees", [0.0, 17.0, 90.0, -133.3])
@pytest.mark.parametrize("shape", [(8, 8, 1), SHAPE], ids=str)
def test_a_rotation_is_that_of_torchvision(degrees: float, shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(1).random((4, *shape)).astype(np.float32)
    wanted = rotate(torch.tensor(images).permute(0, 3, 1, 2), degrees, InterpolationMode.BILINEAR).permute(0, 2, 3, 1).numpy()
    # Shares are rounded to 1/65536; torchvision computes coordinates in float32.
    np.testing.assert_allclose(transformed(images, rotation(degrees, shape)), wanted, atol=2e-4)


def test_quarter_turns_are_exact() -> None:
    images = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    for quarters in range(-4, 5):
        np.testing.assert_array_equal(transformed(images, rotation(90.0 * quarters, (8, 8, 1))), np.rot90(images, quarters, axes=(1, 2)))


def test_shares_of_pixels_inside_add_up_to_one() -> None:
    found = rotation(31.0, (9, 9, 1))
    assert found.weight is not None
    total = found.weight.sum(axis=0).reshape(9, 9)
    assert (total[2:7, 2:7] == UNIT).all()
    assert total.max() == UNIT
    assert total[0, 0] < UNIT, "a corner comes from outside"


def test_uint8_results_are_the_nearest_numbers_and_the_same_in_jax() -> None:
    turned = rotation(31.0, SHAPE)
    exact = transformed(IMAGES.astype(np.float32), turned)
    found = transformed(IMAGES, turned)
    assert found.dtype == np.uint8
    assert np.abs(found - exact).max() <= 0.5 + 1e-4
    for images in (IMAGES, IMAGES.reshape(5, -1)):
        in_jax = transformed(jnp.asarray(images), Transform(jnp.asarray(turned.index), jnp.asarray(turned.weight)))
        assert in_jax.dtype == jnp.uint8
        np.testing.assert_array_equal(in_jax, transformed(images, turned))
