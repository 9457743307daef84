"""Plain .npy files: opened memory-mapped with the header held against the file's size, written block by block."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np

from clray.errors import DataError


def open_array(path: Path) -> np.ndarray:
    """A read-only memory map of one .npy file; nothing but the header is read.

    Raises:
        DataError: the file is missing, no plain .npy file, or its size is not what its header announces.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; a plain array written by numpy.save is needed there") from None
    except (ValueError, EOFError, OSError, SyntaxError, TokenError, BadZipFile) as error:  # what NumPy raises on junk
        raise DataError(f"{path}: truncated or not a plain .npy array ({error}); write it again with numpy.save") from None
    if not isinstance(array, np.memmap):
        raise DataError(f"{path}: an archive of several arrays; write one plain array with numpy.save")
    announced, found = array.offset + array.nbytes, path.stat().st_size
    if announced != found:
        raise DataError(f"{path}: the header announces {announced} bytes, the file has {found}; write it again with numpy.save")
    return array


def write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> None:
    """Writes one new .npy file from blocks along its first axis, and syncs it to disk.

    Ordinary writes rather than a writable memory map: a full disk is then an ``OSError`` and not a killed process.

    Args:
        path: a file that must not exist.
        shape: of the whole array.
        blocks: arrays that together make up the whole along the first axis.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with path.open("xb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)
        file.flush()
        os.fsync(file.fileno())
