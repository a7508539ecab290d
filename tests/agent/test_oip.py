"""The Open Inference Protocol's bodies: arrays for what fits, a 4xx that says what would fit for all else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanderling.agent import oip
from sanderling.agent.errors import RequestError
from sanderling.agent.runtime import Tensor

X = [Tensor("x", np.dtype(np.float32), (-1, 2))]


def body(**changes: Any) -> bytes:
    entry = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2.5, 3, 4]} | changes
    return json.dumps({"inputs": [entry]}).encode()


@pytest.mark.parametrize("data", [[1, 2.5, 3, 4], [[1, 2.5], [3, 4]]])
def test_flat_and_nested_data(data: list[Any]) -> None:
    request = oip.decode(oip.InferRequest, body(data=data))
    arrays = oip.read_inputs(request.inputs, X)
    assert arrays["x"].dtype == np.float32
    assert arrays["x"].tolist() == [[1, 2.5], [3, 4]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "y"}, "no input 'y'; it takes x"),
        ({"datatype": "FP64"}, "the model takes FP32"),
        ({"shape": [2, 3]}, r"the model takes \[-1, 2\]"),
        ({"shape": [4]}, r"the model takes \[-1, 2\]"),
        ({"shape": [3, 2]}, "4 values for shape"),
        ({"data": [[1, 2], [3]]}, "ragged"),
        ({"data": ["a", "b", "c", "d"]}, "no FP32"),
        ({"data": [None, 1, 2, 3]}, "no FP32"),
        ({"data": [1e300, 1, 2, 3]}, "outside FP32's range"),
        ({"shape": [10**6, 2], "data": []}, "samples in one request"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], said: str) -> None:
    request = oip.decode(oip.InferRequest, body(**changes))
    with pytest.raises(RequestError, match=said) as caught:
        oip.read_inputs(request.inputs, X)
    assert caught.value.status == 400


def test_integers_keep_their_range() -> None:
    wanted = [Tensor("x", np.dtype(np.int8), (-1, 2))]
    request = oip.decode(oip.InferRequest, body(datatype="INT8", data=[1, 2, 3, 300]))
    with pytest.raises(RequestError, match="outside INT8"):
        oip.read_inputs(request.inputs, wanted)


def test_inputs_of_different_length() -> None:
    two = [*X, Tensor("z", np.dtype(np.float32), (-1, 1))]
    entries = [
        {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]},
        {"name": "z", "shape": [1, 1], "datatype": "FP32", "data": [1]},
    ]
    request = oip.decode(oip.InferRequest, json.dumps({"inputs": entries}).encode())
    with pytest.raises(RequestError, match="different numbers of samples"):
        oip.read_inputs(request.inputs, two)
    with pytest.raises(RequestError, match="z is missing"):
        oip.read_inputs(request.inputs[:1], two)
    with pytest.raises(RequestError, match="given twice"):
        oip.read_inputs([request.inputs[0], request.inputs[0]], two)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)
ENTRY = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "y"]),
        "shape": st.lists(st.integers(0, 3), max_size=3) | JSON,
        "datatype": st.sampled_from(["FP32", "INT8", "BOOL", ""]),
        "data": st.lists(JSON, max_size=6),
    }
)


@given(
    st.binary(max_size=100)
    | JSON.map(lambda v: json.dumps(v).encode())
    | st.lists(ENTRY, max_size=2).map(lambda entries: json.dumps({"inputs": entries}).encode())
)
def test_any_body_gives_arrays_or_a_4xx(data: bytes) -> None:
    for kind in (np.float32, np.int8, np.bool_):
        try:
            request = oip.decode(oip.InferRequest, data)
            arrays = oip.read_inputs(request.inputs, [Tensor("x", np.dtype(kind), (-1, 2))])
        except RequestError as error:
            assert 400 <= error.status < 500
        else:
            assert arrays["x"].dtype == kind
            assert arrays["x"].shape[1] == 2


@given(st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_feedback_gives_labels_or_a_4xx(data: bytes) -> None:
    try:
        labels = oip.decode(oip.FeedbackRequest, data).given_labels()
    except RequestError as error:
        assert error.status == 400
    else:
        assert all(0 <= label < 65536 for label in labels)
