"""Groups: cut alike by both ends, one held at a time, and nothing changed by a blob that is damaged anywhere."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanderling.codec import (
    CodecError,
    CodecLimits,
    accumulate,
    decode_delta,
    decode_integers,
    encode_delta,
    encode_integers,
    groups,
    iterate_delta,
    iterate_integers,
)
from sanderling.codec.limits import WORK_BYTES_PER_ELEMENT

F32 = npt.NDArray[np.float32]


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> int:
    """Groups of at most 100 elements, so that small arrays fill several."""
    monkeypatch.setattr(groups.cut, "__defaults__", (100,))
    return 100


class Lazy(Mapping[str, npt.NDArray[np.generic]]):
    """Values that are made when asked for, and counted."""

    def __init__(self, names: list[str], make: Callable[[str], npt.NDArray[np.generic]]) -> None:
        self.names, self.make, self.asked = names, make, list[str]()

    def __getitem__(self, name: str) -> npt.NDArray[np.generic]:
        self.asked.append(name)
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def fixed(blob: bytes) -> bytes:
    return blob[:-4] + zlib.crc32(blob[:-4]).to_bytes(4, "little")


def network(seed: int, sizes: list[int]) -> dict[str, F32]:
    generator = np.random.default_rng(seed)
    return {f"w{i}": generator.standard_normal(size).astype(np.float32) for i, size in enumerate(sizes)}


@given(st.lists(st.integers(0, 25), max_size=30), st.integers(1, 20))
def test_the_cut(counts: list[int], most: int) -> None:
    found = list(groups.cut(counts, lambda count: count, most))
    assert [count for group in found for count in group] == [count for count in counts if count]
    assert all(sum(group) <= most or len(group) == 1 for group in found)
    for group, following in pairwise(found):
        assert sum(group) + following[0] > most


@given(st.integers(0, 2**63 - 1), st.binary(max_size=3))
def test_sizes(size: int, tail: bytes) -> None:
    coded = groups.size_bytes(size)
    assert groups.read_size(b"x" + coded + tail, 1) == (size, 1 + len(coded))
    assert len(coded) == max(1, -(-size.bit_length() // 7))
    with pytest.raises(CodecError):
        groups.read_size(coded[:-1], 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 250), max_size=8), st.integers(0, 9))
def test_arrays_of_several_groups_come_back(sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    arrays = {f"a{i}": generator.integers(-9, 10, size).astype(np.int8) for i, size in enumerate(sizes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups.cut, "__defaults__", (100,))
        blob = encode_integers(arrays)
        found = dict(iterate_integers(blob))
        tensors = network(seed, sizes)
        delta, residual = encode_delta(tensors)
        decoded = dict(iterate_delta(delta))
    assert list(found) == list(arrays) and list(decoded) == list(tensors)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    for name, tensor in tensors.items():
        assert np.array_equal(decoded[name] + residual[name], tensor)


def test_a_larger_array_is_a_group_alone() -> None:
    generator = np.random.default_rng(1)
    arrays = {name: generator.integers(-1, 2, count).astype(np.int8) for name, count in
              (("a", 5), ("large", (1 << 20) + 7), ("b", 6))}  # fmt: skip
    found = decode_integers(encode_integers(arrays))
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_values_are_asked_for_once_and_when_their_turn_comes(small_groups: int) -> None:
    names = [f"layer{i}" for i in range(9)]
    lazy = Lazy(names, lambda name: np.full((4, 10), int(name[5:]), np.int16))
    found = decode_integers(encode_integers(lazy))
    assert lazy.asked == names == list(found)
    assert found["layer7"].tolist() == [[7] * 10] * 4
    lazy = Lazy(names, lambda name: np.full((4, 10), int(name[5:]), np.float32))
    blob, _ = encode_delta(lazy)  # type: ignore[arg-type]
    assert lazy.asked == names == list(decode_delta(blob))


def test_a_group_is_read_when_its_turn_comes(small_groups: int) -> None:
    tensors = network(2, [90, 90, 90])
    blob = encode_delta(tensors)[0]
    whole = decode_delta(blob)
    damaged = fixed(blob[:-9] + bytes(5) + blob[-4:])
    stream = iterate_delta(damaged)
    name, first = next(stream)
    assert name == "w0" and np.array_equal(first, whole["w0"])
    with pytest.raises(CodecError):
        list(stream)


@pytest.mark.parametrize("sizes", [[90], [40, 40], [90, 0, 90, 90], [250, 3]])
def test_a_damaged_blob_of_any_number_of_groups_adds_nothing(small_groups: int, sizes: list[int]) -> None:
    tensors = network(3, sizes)
    blob = encode_delta(tensors)[0]
    into = {name: np.zeros(tensor.shape) for name, tensor in tensors.items()}
    refused = 0
    for position in range(5, len(blob) - 4):
        damaged = bytearray(blob)
        damaged[position] ^= 1 << position % 8
        try:
            accumulate(fixed(bytes(damaged)), into)
        except CodecError:
            refused += 1
            assert not any(array.any() for array in into.values())
        for array in into.values():
            array[...] = 0
    for cut in range(1, len(blob) - 9):
        with pytest.raises(CodecError):
            accumulate(fixed(blob[: -cut - 4] + bytes(4)), into)
        assert not any(array.any() for array in into.values())
    assert refused > 10
    accumulate(blob, into, 0.5)
    for name, tensor in decode_delta(blob).items():
        assert np.array_equal(into[name], 0.5 * tensor.astype(np.float64))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("weight", [1.0, 0.3, -2.0])
def test_sums_are_those_of_the_decoded_tensors(dtype: str, weight: float) -> None:
    tensors = network(4, [70_000, 1]) | {"scalar": np.array(0.3, np.float32), "tiny": np.full(9, 1e-41, np.float32)}
    blob = encode_delta(tensors)[0]
    into = {name: np.ones(tensor.shape, dtype) for name, tensor in tensors.items()}
    into["w0"] = np.ones((70_000, 2), dtype)[:, 0]  # not contiguous
    accumulate(blob, into, weight)
    for name, tensor in decode_delta(blob).items():
        native = into[name].dtype.newbyteorder("=")
        assert np.array_equal(into[name], native.type(1) + native.type(weight) * tensor.astype(native))


def test_what_cannot_be_added_to_is_refused() -> None:
    blob = encode_delta({"w": np.ones(3, np.float32)})[0]
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    for target in (np.zeros(3, np.int64), frozen):
        with pytest.raises(CodecError, match="floats"):
            accumulate(blob, {"w": target})  # type: ignore[dict-item]
    with pytest.raises(CodecError, match="weight"):
        accumulate(blob, {"w": np.zeros(3)}, float("nan"))


def test_one_array_may_be_limited() -> None:
    limits = CodecLimits(array_elements=10)
    with pytest.raises(CodecError, match="array_elements"):
        decode_integers(encode_integers({"w": np.zeros(11, np.int8)}), limits=limits)
    with pytest.raises(CodecError, match="cut it"):
        encode_integers({"w": np.zeros(11, np.int8)}, limits=limits)


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_that_of_a_group_however_many_there_are(small_groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups.cut, "__defaults__", (1 << 14,))
    count, size = 24, 1 << 13
    generator = np.random.default_rng(5)
    names = [f"t{i}" for i in range(count)]
    base = (generator.standard_normal(size) ** 3).astype(np.float32)
    levels = np.rint(base).astype(np.int8)
    blob = encode_delta(dict.fromkeys(names, base))[0]
    into = {name: np.zeros(size, np.float32) for name in names}
    group = 1 << 14
    allowed = WORK_BYTES_PER_ELEMENT * group + 2 * len(blob) + (1 << 20)
    assert WORK_BYTES_PER_ELEMENT * size * count > 5 * allowed
    assert peak(lambda: accumulate(blob, into)) < allowed
    assert peak(lambda: [None for _ in iterate_delta(blob)]) < allowed
    assert peak(lambda: encode_integers(Lazy(names, lambda _: levels.copy()))) < 4 * allowed


def test_values_that_no_sample_has_seen() -> None:
    """Large arrays are judged by samples: a few values far beyond all others must not matter to that."""
    generator = np.random.default_rng(1)
    array = generator.standard_normal((1500, 1500)) * np.abs(generator.standard_normal((1500, 1))) * 3
    array[7, 9], array[-1, 5] = 4000, -9000
    levels = np.rint(array).astype(np.int32)
    assert np.array_equal(decode_integers(encode_integers({"w": levels}))["w"], levels)
