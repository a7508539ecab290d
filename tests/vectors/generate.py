"""Golden blobs: writes them, or verifies them byte for byte.

    python tests/vectors/generate.py           writes what is missing, and refuses to change what is there
    python tests/vectors/generate.py --verify  only compares

A blob here never changes: devices in the field have written and will read such bytes. A new version of the format
gets new files beside these. Inputs come from a generator of our own (32-bit xorshift, Marsaglia 2003), so that they
are the same with any version of any library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sanderling.codec import decode_delta, decode_integers, encode_delta, encode_integers
from sanderling.codec.files.pack import pack_file, unpack_file
from sanderling.codec.files.patch import apply_patch, make_patch

HERE = Path(__file__).parent
Arrays = dict[str, npt.NDArray[np.generic]]


def numbers(seed: int) -> Iterator[int]:
    """Pseudo-random 32-bit numbers."""
    while True:
        seed ^= seed << 13 & 0xFFFFFFFF
        seed ^= seed >> 17
        seed ^= seed << 5 & 0xFFFFFFFF
        yield seed


def bell(seed: int, shape: tuple[int, ...], scale: int) -> npt.NDArray[np.int64]:
    """Integers whose distribution is a bell of standard deviation of about `scale` / 1.73."""
    source = numbers(seed)
    count = int(np.prod(shape))
    return np.array(
        [(sum(next(source) % (2 * scale + 1) for _ in range(4)) - 4 * scale) // 2 for _ in range(count)], np.int64
    ).reshape(shape)


def sparse(seed: int, count: int, one_in: int) -> npt.NDArray[np.int64]:
    """Mostly zeros; one value in `one_in` is from -2 to 2."""
    source = numbers(seed)
    return np.array([next(source) % 5 - 2 if next(source) % one_in == 0 else 0 for _ in range(count)], np.int64)


def shapes() -> Arrays:
    """Scalars, empty arrays, all types, extreme values, strange names."""
    arrays: Arrays = {"": np.array(7), "empty": np.zeros((0, 3), np.int8), "ünïcode/名 1": np.array([[True], [False]])}
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        limits = np.iinfo(name)
        arrays[f"types.{name}"] = np.array([limits.min, 0, 1, limits.max, limits.max - 1], name)
    return arrays


def network() -> dict[str, npt.NDArray[np.float32]]:
    """Something like a delta of a small network; one tensor does not change at all."""
    layers = {"stem": (16, 6, 5), "blocks.0.depthwise": (16, 1, 7), "blocks.0.pointwise": (24, 16, 1), "head": (7, 24)}
    result: dict[str, npt.NDArray[np.float32]] = {}
    for seed, (name, shape) in enumerate(layers.items(), 11):
        result[f"{name}.weight"] = (bell(seed, shape, 400) * 2.0**-17).astype(np.float32)
        result[f"{name}.bias"] = (bell(seed + 50, shape[:1], 100) * 2.0**-15).astype(np.float32)
    result["frozen"] = np.zeros(5, np.float32)
    return result


def mirrored(seed: int, shape: tuple[int, int], scale: int, sign: int, first: int) -> npt.NDArray[np.int64]:
    """Lines whose value at `first` + i is that at i from the end, or its negative, up to a little."""
    values = bell(seed, shape, scale)
    count = (shape[1] - first) // 2
    values[:, shape[1] - count :] = sign * values[:, first : first + count][:, ::-1] + sparse(
        seed, shape[0] * count, 9
    ).reshape(-1, count)
    return values


def product(seed: int, shape: tuple[int, ...], scale: int, one_in: int) -> npt.NDArray[np.int64]:
    """Values as large as the product of a number for each row and one for each column (of which the last is 0), and
    mostly of the sign of that product.
    """
    source = numbers(seed)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    row = [(next(source) % 9 - 4) * (next(source) % one_in == 0) for _ in range(rows)]
    column = [next(source) % 9 - 4 for _ in range(columns - 1)] + [0]
    return np.array(
        [[a * b * (next(source) % (2 * scale + 1) - scale // 4) // 16 for b in column] for a in row], np.int64
    ).reshape(shape)


INTEGERS: dict[str, Callable[[], Arrays]] = {
    "integers-none": dict,
    "integers-shapes": shapes,
    "integers-dense": lambda: {"w": bell(1, (60, 50), 30).astype(np.int8), "b": bell(2, (60,), 3000).astype(np.int32)},
    "integers-tuples": lambda: {"w": bell(3, (70, 50), 1).astype(np.int8), "c": np.full((9, 9), -3, np.int16)},
    "integers-runs": lambda: {"w": sparse(4, 9000, 20).astype(np.int8), "v": sparse(5, 400, 200)},
    "integers-divided": lambda: {
        "linear": product(8, (40, 50), 9, 1),
        "conv": product(9, (24, 16, 3, 3), 3, 2).astype(np.int16),
        "channels": np.repeat(product(10, (24, 20), 3, 2), 9, axis=1).reshape(24, 20, 3, 3),
        "unsigned": product(11, (30, 30), 2, 3).astype(np.int8).view(np.uint8),
        "bias": bell(12, (24,), 2),
    },
    "integers-signs": lambda: {
        "chained": np.cumsum(bell(13, (30, 60), 1) * 3, axis=1) // 4,
        "template": bell(15, (1, 50), 40) * np.array([[(i % 5 != 3) * (-1) ** (i % 2)] for i in range(40)])
        + sparse(16, 2000, 4).reshape(40, 50),
        "alike": 1 - np.abs(product(14, (40, 40), 1, 3)).astype(np.int8) % 3,
    },
    "integers-mirror": lambda: {
        "window": mirrored(17, (1, 129), 40, 1, 0).reshape(129),
        "odd": mirrored(18, (12, 24), 20, -1, 0).astype(np.int8),
        "period": mirrored(19, (12, 24), 20, 1, 1),
        "odd-period": mirrored(20, (16, 25), 20, -1, 1).reshape(16, 1, 1, 25),
    },
    "integers-lanes": lambda: {"w": bell(6, (5000,), 9).astype(np.int16), "far": bell(7, (3000,), 9) + 2**40},
}


def blobs() -> Iterator[tuple[str, bytes]]:
    """(file name, blob) of all vectors; each is decoded and compared on the way."""
    for name, make in INTEGERS.items():
        arrays = make()
        blob = encode_integers(arrays)
        same(arrays, decode_integers(blob))
        yield f"{name}-v2.sndl", blob
    delta = network()
    residual: dict[str, npt.NDArray[np.float32]] | None = None
    for number, quality in enumerate((0.95, 0.5)):
        total = delta if residual is None else {k: delta[k] + residual[k] for k in delta}
        blob, residual = encode_delta(delta, residual, quality)
        decoded = decode_delta(blob)
        same(total, {name: decoded[name] + residual[name] for name in decoded})
        yield f"delta-{number}-v2.sndl", blob


def same(expected: object, found: object) -> None:
    """Raise unless both hold the same names, types, shapes and values in the same order."""
    assert isinstance(expected, dict) and isinstance(found, dict)
    if list(expected) != list(found):
        raise AssertionError(f"names {list(expected)} became {list(found)}")
    for name, value in expected.items():
        other = found[name]
        if value.dtype != other.dtype or value.shape != other.shape or not np.array_equal(value, other):
            raise AssertionError(f"{name} differs")


def check_packed() -> None:
    """Packed files depend on zlib and lzma, so only unpacking is fixed: the stored blobs must give the files back."""
    path, other = HERE / "file-v2.sndl", HERE / "patch-v2.sndl"
    name, data, changed = "weights.bin", weights_file(), weights_file(3)
    if not path.exists():
        path.write_bytes(pack_file(data, name))
    if not other.exists():
        other.write_bytes(make_patch(data, changed, name))
    if unpack_file(path.read_bytes()) != (name, data):
        raise AssertionError(f"{path.name} does not unpack to what was packed")
    if apply_patch(data, other.read_bytes()) != (name, changed):
        raise AssertionError(f"{other.name} does not give the file that it was made for")


def weights_file(change: int = 0) -> bytes:
    """An ONNX model, as far as its bytes go: a graph with one tensor of float32."""
    raw = ((bell(9, (600,), 1000) + bell(10, (600,), change)) * 2.0**-12).astype("<f4").tobytes()
    tensor = field(1, bytes([88])) + bytes([0x10, 1]) + field(8, b"w") + field(9, raw)
    return bytes([0x08, 8]) + field(7, field(2, b"graph") + field(5, tensor))


def field(number: int, content: bytes) -> bytes:
    """A protocol buffer's field of bytes."""
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + length + content


def main() -> int:
    """Verify all; write those that are missing unless told not to."""
    status = 0
    for name, blob in blobs():
        path = HERE / name
        if not path.exists() and "--verify" not in sys.argv:
            path.write_bytes(blob)
        if not path.exists() or path.read_bytes() != blob:
            print(f"{name}: the encoder's bytes differ from the stored ones", file=sys.stderr)
            status = 1
    check_packed()
    return status


if __name__ == "__main__":
    sys.exit(main())
