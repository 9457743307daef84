"""Resume state to bytes and back: a flat mapping of path to array or number, exact to the last bit.

The bytes are flax's msgpack format. Whether they are still those that were written is for the checksum in COMMIT.json to say;
here damaged bytes only never crash, run code or come back as something else than numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

Leaf: TypeAlias = np.ndarray | int | float

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
    from flax import serialization

    return serialization.msgpack_serialize({_checked_path(path): _packable(path, value) for path, value in flat.items()})


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
