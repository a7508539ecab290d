"""What kernels of the runtime do with memory, measured: each case in an arena of its own, in a lean process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from sanderling.engine import onnxio
from sanderling.engine.graph import Array, Builder, TensorType
from sanderling.engine.kernels import ALIASES, OVERWRITES, work
from sanderling.engine.lifetimes import arena_bytes
from sanderling.engine.memory import LEAN_ENVIRONMENT

X = (8, 64, 48, 48)  # 4.5 MiB
#: Bytes by which a measurement may differ: program text that is touched for the first time. A tensor has five times as
#: many.
PAGES = 900_000


def weight(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def unary(op: str, **attributes: Any) -> Any:
    return lambda b, x: b.op(op, x, **attributes)


def with_constant(op: str, *constants: Array, **attributes: Any) -> Any:
    return lambda b, x: b.op(op, x, *map(b.constant, constants), **attributes)


#: Case -> what is done with a tensor of shape X that nothing else needs.
CASES: dict[str, Any] = {
    **{op: unary(op) for op in sorted(OVERWRITES - {"Softmax", "LogSoftmax", "ThresholdedRelu"})},
    **{op: unary(op) for op in ("Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Abs", "Erf", "Sign", "Floor", "Cos")},
    "Softmax": unary("Softmax", axis=-1),
    "Softmax-channels": unary("Softmax", axis=1),
    "LogSoftmax-channels": unary("LogSoftmax", axis=1),
    "Add-scalar": with_constant("Add", np.array(2, np.float32)),
    "Mul-channels": with_constant("Mul", weight(64, 1, 1)),
    "Div-itself": lambda b, x: b.op("Div", x, x),
    "Reshape": with_constant("Reshape", np.array([8, -1])),
    "Flatten": unary("Flatten"),
    "Transpose": unary("Transpose", perm=[0, 2, 3, 1]),
    "Greater-Cast": lambda b, x: b.op("Cast", b.op("Greater", x, b.scalar(0)), to=1),
    "Where": lambda b, x: b.op("Where", b.op("Greater", x, b.scalar(0)), x, b.scalar(0)),
    "Where-both": lambda b, x: b.op("Where", b.op("Greater", x, b.scalar(0)), x, b.op("Neg", x)),
    "ReduceSum": with_constant("ReduceSum", np.array([0, 2, 3]), keepdims=0),
    "ReduceMean-last": with_constant("ReduceMean", np.array([3])),
    "Concat": lambda b, x: b.op("Concat", x, x, axis=1),
    "Slice": with_constant("Slice", np.array([1]), np.array([40]), np.array([2])),
    "Pad": with_constant("Pad", np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.array(0, np.float32)),
    "MatMul": with_constant("MatMul", weight(48, 48)),
    "Conv-1x1": with_constant("Conv", weight(32, 64, 1, 1)),
    "Conv-3x3": with_constant("Conv", weight(32, 64, 3, 3), pads=[1, 1, 1, 1]),
    "Conv-many-filters": with_constant("Conv", weight(64, 64, 31, 31), strides=[17, 17]),
    "ConvTranspose": with_constant("ConvTranspose", weight(64, 16, 3, 3), pads=[1, 1, 1, 1]),
    "LayerNormalization": with_constant("LayerNormalization", weight(48), weight(48)),
    "LSTM": lambda b, x: b.op(
        "LSTM", b.op("Reshape", x, b.ints(384, 48, 64)), b.constant(weight(1, 256, 64)), b.constant(weight(1, 256, 64)),
        hidden_size=64,
    ),
    "GRU": lambda b, x: b.op(
        "GRU", b.op("Reshape", x, b.ints(384, 48, 64)), b.constant(weight(1, 192, 64)), b.constant(weight(1, 192, 64)),
        hidden_size=64,
    ),
}  # fmt: skip

CHILD = """
import base64, json, sys
import numpy as np
from sanderling.engine import runtime
from sanderling.engine.memory import resident_bytes, return_freed_memory
return_freed_memory()
x = np.full((8, 64, 48, 48), 0.5, np.float32)
results = {}
told = json.load(sys.stdin)
for name, (model, size) in [*list(told.items())[:1], *told.items()]:  # the first one twice: it touches program text
    runtime.open_arena(size)
    session = runtime.step_session(base64.b64decode(model))
    binding = session.io_binding()
    y = np.zeros(1, np.float32)
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    before = resident_bytes()
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    session.run_with_iobinding(binding)
    peak = next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
    results[name] = peak - before
    del session, binding
print(json.dumps(results))
"""


def build(case: str) -> tuple[bytes, int]:
    """A model that makes a tensor, does the case with it, and sums it up; and the arena that it should need."""
    b = Builder("t")
    made = b.op("Neg", "x")
    result = CASES[case](b, made)
    b.op("Reshape", b.op("ReduceSum", result, keepdims=0), b.ints(1), name="y")
    kind = TensorType("float32", (1,))
    model = onnxio.to_bytes(b.nodes, {"x": TensorType("float32", X)}, {"y": kind}, b.constants, 18)
    types = onnxio.infer_types(model)
    sizes = {name: t.nbytes for name, t in types.items()}
    works = [work(node, types) for node in b.nodes]
    return model, arena_bytes(works, sizes, {"x", "y", *b.constants})


@lru_cache(maxsize=1)
def measured() -> dict[str, int]:
    """Bytes that became resident while each case ran. An arena has room to spare, so that it is never the limit."""
    import base64

    told = {}
    for case in CASES:
        model, size = build(case)
        told[case] = (base64.b64encode(model).decode(), size + 2**24)
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(told), capture_output=True, text=True, check=True, timeout=300,
        env={**os.environ, **LEAN_ENVIRONMENT},
    )  # fmt: skip
    results: dict[str, int] = json.loads(done.stdout)
    return results


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system does not reset peaks")
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_takes_what_is_computed(case: str) -> None:
    _, size = build(case)
    given = measured()[case]
    assert abs(given - size) <= PAGES + size // 50, f"{given / 2**20:.2f} MiB, computed {size / 2**20:.2f}"


def test_every_table_entry_is_measured() -> None:
    assert OVERWRITES - {"ThresholdedRelu"} <= {case.partition("-")[0] for case in CASES}
    assert {"Reshape", "Flatten"} <= ALIASES
