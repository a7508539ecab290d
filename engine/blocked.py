"""The runtime's blocked layout: whether this processor has it, and in blocks of how many channels.

onnxruntime keeps blocks of 8 or 16 channels together in operators of a domain of its own, `com.microsoft.nchwc`, which
`passes/` write into the steps of a plan. They are internal to the runtime, so the size of the blocks is found by a
numeric probe, and a plan carries the probe along: a processor that answers it wrongly refuses the plan.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .errors import EngineError
from .graph import Builder
from .runtime import run_once

DOMAIN = "com.microsoft.nchwc"
_SIZES = (8, 16)
_TOLERANCE = 1e-4
_DIFFERENCE = "difference"


@lru_cache(maxsize=1)
def block_size() -> int:
    """Channels per block on this processor; 0 where the blocked form does not work."""
    return next((size for size in _SIZES if blocks_agree(probe_model(size))), 0)


def probe_model(block: int) -> bytes:
    """A model without inputs that gives the largest difference between the plain and the blocked form."""
    from . import onnxio

    channels, side, taps = 32, 9, 9
    noise = np.random.default_rng(0)
    x = noise.standard_normal((2, channels, side, side), np.float32)
    w = noise.standard_normal((channels, 1, 3, 3), np.float32)
    in_blocks = w.reshape(channels // block, block, taps).transpose(0, 2, 1).reshape(w.shape)
    sizes: dict[str, Any] = {"pads": [1, 1, 1, 1], "group": channels, "kernel_shape": [3, 3]}
    b = Builder("p")
    image = b.constant(x)
    there = b.multi("ReorderInput", (image,), 1, domain=DOMAIN)[0]
    made = b.multi("Conv", (there, b.constant(in_blocks)), 1, domain=DOMAIN, **sizes)[0]
    back = b.multi("ReorderOutput", (made,), 1, domain=DOMAIN, channels=channels)[0]
    plain = b.op("Conv", image, b.constant(w), **sizes)
    b.op("ReduceMax", b.op("Abs", b.op("Sub", back, plain)), keepdims=0, name=_DIFFERENCE)
    return onnxio.to_bytes(b.nodes, {}, {_DIFFERENCE: None}, b.constants, onnxio.OPSET)


def blocks_agree(probe: bytes) -> bool:
    """Whether this processor computes the blocked form of a `probe_model` rightly. Needs no `onnx`."""
    try:
        return float(run_once(probe, {}, [_DIFFERENCE])[0]) <= _TOLERANCE
    except EngineError:  # no such operator in this runtime or on this processor
        return False
