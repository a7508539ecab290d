"""What both ends agree on: number formats, the delta and model file formats, messages, topics. Bytes in, bytes out;
no I/O.

Names below are loaded when first used, so that a process that needs only messages and topics never pays for numpy.

>>> blob = encode_integers({"layer.weight": [[0, 0, 3], [0, -1, 0]]})
>>> decode_integers(blob)["layer.weight"].tolist()
[[0, 0, 3], [0, -1, 0]]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import CodecError

if TYPE_CHECKING:
    from .delta import accumulate, decode_delta, encode_delta, iterate_delta
    from .files.pack import pack_file, unpack_file
    from .files.patch import apply_patch, make_patch
    from .integers import decode_integers, encode_integers, iterate_integers
    from .limits import CodecLimits

__all__ = [
    "CodecError",
    "CodecLimits",
    "accumulate",
    "apply_patch",
    "decode_delta",
    "decode_integers",
    "encode_delta",
    "encode_integers",
    "iterate_delta",
    "iterate_integers",
    "make_patch",
    "pack_file",
    "unpack_file",
]

#: Public name -> the module that it is loaded from.
_HOMES = {
    "CodecLimits": ".limits",
    "accumulate": ".delta",
    "apply_patch": ".files.patch",
    "decode_delta": ".delta",
    "decode_integers": ".integers",
    "encode_delta": ".delta",
    "encode_integers": ".integers",
    "iterate_delta": ".delta",
    "iterate_integers": ".integers",
    "make_patch": ".files.patch",
    "pack_file": ".files.pack",
    "unpack_file": ".files.pack",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
