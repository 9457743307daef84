"""Resume state to bytes and back: a flat mapping of path to array or number, exact to the last bit.

The bytes are flax's msgpack format. Whether they are still those that were written is for the checksum in COMMIT.json to say;
here damaged bytes only never crash, run code or come back as something else than numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import msgpack
import numpy as np

Leaf: TypeAlias = np.ndarray | int | float

VIEWED_BYTES = 2**16
"""Arrays from here on are not copied where they are contiguous. Their lengths need 32 bits in msgpack, which is what ``_header`` writes."""

_KINDS = "biufc"
_OTHER_DTYPES = frozenset({"bfloat16"})


class CorruptStateError(ValueError):
    """These bytes are not a packed state."""


def pack_state(flat: Mapping[str, Leaf]) -> bytes:
    """Pack a state.

    Args:
        flat: path to array (bool, integer, float, complex or bfloat16, any shape), int or float.

    Raises:
        TypeError: a value of another kind; nothing is ever pickled.
        ValueError: a path that cannot be used, or an integer beyond 64 bits.
    """
    return b"".join(packed_parts(flat))


def packed_parts(flat: Mapping[str, Leaf]) -> Iterator[bytes | memoryview]:
    """What ``pack_state`` returns in pieces, with large arrays as views of their own memory: packing them makes four copies, which
    took longer than hashing and writing them.

    Raises:
        TypeError, ValueError: see ``pack_state``.
    """
    from flax import serialization

    state = {_checked_path(path): _packable(path, value) for path, value in flat.items()}
    sizes = {path: value.nbytes for path, value in state.items() if isinstance(value, np.ndarray)}
    if max(sizes.values(), default=0) > serialization.MAX_CHUNK_SIZE:  # flax cuts these into pieces
        yield serialization.msgpack_serialize(state)
        return
    packer = msgpack.Packer()
    yield packer.pack_map_header(len(state))
    for path in sorted(state):
        value = state[path]
        yield packer.pack(path)
        if sizes.get(path, 0) < VIEWED_BYTES:
            yield serialization.msgpack_serialize(value)
        else:
            assert isinstance(value, np.ndarray)
            yield _header(packer, value)
            yield np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def _header(packer: msgpack.Packer, array: np.ndarray) -> bytes:
    """What comes before the bytes of an array: an extension of flax's type for arrays that holds [shape, dtype, bytes], with the
    lengths of extension and bytes as 32 bits."""
    facts = (
        packer.pack_array_header(3) + packer.pack(array.shape) + packer.pack(array.dtype.name) + b"\xc6" + array.nbytes.to_bytes(4, "big")
    )
    return b"\xc9" + (len(facts) + array.nbytes).to_bytes(4, "big") + b"\x01" + facts


def unpack_state(data: bytes) -> dict[str, Leaf]:
    """Unpack a state; arrays are read-only views of ``data``, 0-d arrays stay arrays.

    Raises:
        CorruptStateError: damaged or foreign bytes.
    """
    from flax import serialization

    try:
        state = serialization.msgpack_restore(data)
    except Exception as error:  # msgpack, NumPy and flax each have their own
        raise CorruptStateError(f"not a packed state: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise CorruptStateError("not a packed state: no mapping")
    for path, value in state.items():
        if not isinstance(path, str) or not isinstance(value, (np.ndarray, int, float)) or isinstance(value, np.generic):
            raise CorruptStateError(f"not a packed state: {path!r} holds a {type(value).__name__}")
    return state


def _checked_path(path: str) -> str:
    # flax marks arrays above 1 GB, which it cuts into pieces, with keys that begin so.
    if not isinstance(path, str) or not path or path.startswith("__msgpack"):
        raise ValueError(f"{path!r} cannot be a path of a state")
    return path


def _packable(path: str, value: Leaf) -> Leaf:
    if type(value) is int:
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"{path}: {value} has more than 64 bits")
        return value
    if type(value) in (bool, float):
        return value
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"{path} is a {type(value).__name__}: a state holds NumPy arrays, int and float")
    array = np.asarray(value)
    if array.dtype.kind not in _KINDS and array.dtype.name not in _OTHER_DTYPES:
        raise TypeError(f"{path} has dtype {array.dtype}, which a state cannot hold")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
