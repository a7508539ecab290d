"""Recurrent layers against an independent evaluation in double precision: numeric slopes, all outputs, all options."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanderling.engine import Trainer, UnsupportedOperatorError, compile, onnxio
from sanderling.engine.checker import pull_back
from sanderling.engine.graph import Array, Builder, Node, TensorType
from sanderling.engine.runtime import run_once

torch = pytest.importorskip("torch", reason="PyTorch is not installed: exports are compared with it")

torch.set_num_threads(1)

FUNCTIONS: dict[str, Any] = {
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0),
    "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "Softsign": lambda x: x / (1 + np.abs(x)),
}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
T, N, WIDTH, H = 6, 3, 4, 5


def evaluate(op: str, attributes: dict[str, Any], given: dict[str, Array]) -> list[Array]:
    """[Y, Y_h, Y_c] as the ONNX specification defines them, sample by sample and step by step."""
    w, r = given["w"], given["r"]
    directions, hidden = len(w), r.shape[-1]
    steps, samples = given["x"].shape[:2]
    y, last = np.zeros((steps, directions, samples, hidden)), np.zeros((directions, samples, hidden))
    cell = last.copy()
    names = attributes.get("activations", DEFAULTS[op] * directions)
    each = len(DEFAULTS[op])
    for d in range(directions):
        f, *rest = (FUNCTIONS[n] for n in names[d * each : (d + 1) * each])
        bias = given["b"][d] if "b" in given else np.zeros(2 * GATES[op] * hidden)
        wb, rb = np.split(bias, 2)
        backwards = attributes.get("direction") == "reverse" or d == 1
        for sample in range(samples):
            length = int(given["lengths"][sample]) if "lengths" in given else steps
            h = given["h0"][d, sample] if "h0" in given else np.zeros(hidden)
            c = given["c0"][d, sample] if "c0" in given else np.zeros(hidden)
            for t in range(length)[:: -1 if backwards else 1]:
                x = given["x"][t, sample]
                parts = np.split(w[d] @ x + wb, GATES[op]), np.split(r[d] @ h + rb, GATES[op])
                if op == "RNN":
                    h = f(parts[0][0] + parts[1][0])
                elif op == "GRU":
                    z, s = f(parts[0][0] + parts[1][0]), f(parts[0][1] + parts[1][1])
                    if attributes.get("linear_before_reset"):
                        n = rest[0](parts[0][2] + s * parts[1][2])
                    else:
                        n = rest[0](parts[0][2] + r[d][2 * hidden :] @ (s * h) + rb[2 * hidden :])
                    h = (1 - z) * n + z * h
                else:
                    i, o, g = (f(parts[0][k] + parts[1][k]) for k in range(3))
                    c = g * c + i * rest[0](parts[0][3] + parts[1][3])
                    h = o * rest[1](c)
                y[t, d, sample] = h
            last[d, sample], cell[d, sample] = h, c
    return [y, last, cell]


def arguments(op: str, directions: int, initial: bool, bias: bool, steps: int = T) -> dict[str, Array]:
    rng = np.random.default_rng(11)
    shapes: dict[str, tuple[int, ...]] = {
        "x": (steps, N, WIDTH),
        "w": (directions, GATES[op] * H, WIDTH),
        "r": (directions, GATES[op] * H, H),
    }
    if bias:
        shapes["b"] = (directions, 2 * GATES[op] * H)
    if initial:
        shapes["h0"] = (directions, N, H)
        if op == "LSTM":
            shapes["c0"] = (directions, N, H)
    return {n: (0.6 * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}


def model(
    op: str, attributes: dict[str, Any], given: dict[str, Array], outputs: str, constants: tuple[str, ...] = ()
) -> bytes:
    """The operator alone; `outputs` names those that are given, of "y", "h", "c"."""
    b = Builder("m")
    order = ["x", "w", "r", "b", "lengths", "h0", "c0", "p"]
    names = [b.constant(given[n]) if n in constants else n if n in given else "" for n in order]
    while not names[-1]:
        names.pop()
    written = [o if o in outputs else "" for o in "yhc"[: 3 if "c" in outputs else 2 if "h" in outputs else 1]]
    b.nodes.append(Node(op, tuple(names), tuple(written), {"hidden_size": H, **attributes}, "layer"))
    kinds = {n: TensorType(v.dtype.name, v.shape) for n, v in given.items() if n not in constants}
    return onnxio.to_bytes(b.nodes, kinds, dict.fromkeys(outputs), b.constants, 18)


def check(op: str, attributes: dict[str, Any], given: dict[str, Array], outputs: str) -> None:
    """Compare the runtime with `evaluate`, and the emitted gradients with its slopes along random directions."""
    data = model(op, attributes, given, outputs)
    wanted = dict(zip("yhc", evaluate(op, attributes, given), strict=True))
    for name, value in zip(outputs, run_once(data, given, list(outputs)), strict=True):
        np.testing.assert_allclose(value, wanted[name], atol=1e-5)
    proto, name = onnxio.load_model(data)
    graph = onnxio.to_graph(proto, None, frozenset(), name)
    rng = np.random.default_rng(5)
    seeds = {o: rng.standard_normal(wanted[o].shape) for o in outputs}
    floats = [n for n in given if n != "lengths"]
    found = pull_back(graph, given, seeds, floats)

    def scalar(changed: str, value: Array) -> float:
        wide = {n: v.astype(np.float64) if n != "lengths" else v for n, v in given.items()} | {changed: value}
        results = dict(zip("yhc", evaluate(op, attributes, wide), strict=True))
        return float(sum((results[o] * seeds[o]).sum() for o in outputs))

    for name in floats:
        assert found[name].shape == given[name].shape
        for _ in range(2):
            way = rng.standard_normal(given[name].shape)
            slope = (scalar(name, given[name] + 1e-6 * way) - scalar(name, given[name] - 1e-6 * way)) / 2e-6
            size = max(abs(slope), float(np.linalg.norm(found[name])))
            assert abs(float((found[name] * way).sum()) - slope) < 1e-4 * size, name


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}), "GRU": ("GRU", {"linear_before_reset": 1}), "GRU-early": ("GRU", {}), "RNN": ("RNN", {}),
}  # fmt: skip


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
def test_gradients_of_all_outputs_together(kind: str, direction: str, lengths: bool) -> None:
    op, attributes = KINDS[kind]
    directions = 2 if direction == "bidirectional" else 1
    given = arguments(op, directions, True, True)
    if lengths:
        given["lengths"] = np.array([T, 2, 4], np.int32)
    check(op, attributes | {"direction": direction}, given, "yhc" if op == "LSTM" else "yh")


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("LSTM", o) for o in ("y", "h", "c", "hc")] + [(k, o) for k in ("GRU", "GRU-early", "RNN") for o in "yh"],
)
def test_gradients_of_single_outputs(kind: str, outputs: str) -> None:
    op, attributes = KINDS[kind]
    check(op, attributes | {"direction": "bidirectional"}, arguments(op, 2, False, False), outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step(kind: str) -> None:
    op, attributes = KINDS[kind]
    check(op, attributes, arguments(op, 1, True, True, 1), "yh")


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Recurrent layers and a head on the last output, the mean output or the last states."""

    def __init__(
        self, kind: str, use: str = "last", learned: bool = False, steps_first: bool = False, **options: Any
    ) -> None:
        super().__init__()
        self.body = getattr(torch.nn, kind)(WIDTH, H, batch_first=not steps_first, **options)
        self.steps_first = steps_first
        ways = 2 if self.body.bidirectional else 1
        self.use, self.learned = use, learned
        self.head = torch.nn.Linear(H * ways, 3)
        if learned:
            self.h0 = torch.nn.Parameter(torch.randn(self.body.num_layers * ways, 1, H))

    def forward(self, x: Any) -> Any:
        """[N, T, I], or [T, N, I] with `steps_first` -> [N, 3]."""
        states = None
        if self.learned:
            h = self.h0.expand(-1, x.shape[0], -1).contiguous()
            states = (h, h * 0.5) if isinstance(self.body, torch.nn.LSTM) else h
        y, last = self.body(x, states)
        if self.use == "last":
            return self.head(y[-1] if self.steps_first else y[:, -1])
        if self.use == "mean":
            return self.head(y.mean(1))
        parts = last if isinstance(last, tuple) else (last,)
        ways = 2 if self.body.bidirectional else 1
        return self.head(sum(torch.cat([*p[-ways:]], -1) for p in parts))


def export(net: Any, free: bool, dynamo: bool, steps: int = T, **options: Any) -> bytes:
    buffer = io.BytesIO()
    x = torch.zeros(steps, N, WIDTH) if net.steps_first else torch.zeros(N, steps, WIDTH)
    axis = int(net.steps_first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({axis: torch.export.Dim("N")},) if free else None
            torch.onnx.export(net.eval(), (x,), dynamo=True, dynamic_shapes=shapes, verbose=False).save(buffer)
        else:
            axes = {"x": {axis: "N"}, "y": {0: "N"}} if free else None
            torch.onnx.export(
                net.eval(), (x,), buffer, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
                dynamic_axes=axes, **options,
            )  # fmt: skip
    return buffer.getvalue()


def in_onnx(net: Any, parameters: dict[str, Array]) -> dict[tuple[int, str], Array]:
    """Parameters or gradients of the recurrent layers as ONNX arranges them: {(layer, "w", "r" or "b"): array}."""
    body = net.body
    kind = type(body).__name__
    order = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}[kind]  # PyTorch: i f g o, and r z n
    ways = ["", "_reverse"] if body.bidirectional else [""]

    def gates(name: str) -> Array:
        return np.concatenate([np.split(parameters[f"body.{name}"], len(order))[k] for k in order])

    found = {}
    for layer in range(body.num_layers):
        found[layer, "w"] = np.stack([gates(f"weight_ih_l{layer}{way}") for way in ways])
        found[layer, "r"] = np.stack([gates(f"weight_hh_l{layer}{way}") for way in ways])
        biases = [[gates(f"bias_{side}_l{layer}{way}") for side in ("ih", "hh")] for way in ways]
        found[layer, "b"] = np.stack([np.concatenate(pair) for pair in biases])
    return found


def check_unrolled(net: Any, data: bytes) -> Trainer:
    """As `check_trained`, where the exporter spelled the layer out: parameters are found as they are or transposed."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((N, T, WIDTH)).astype(np.float32), rng.integers(0, 3, N)
    torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y)).backward()
    trainer = Trainer(compile(data, batch=N))
    _, given = trainer.gradients(x, y)
    weights = trainer.weights()
    unmatched = set(given)
    for name, parameter in net.named_parameters():
        value, slope = parameter.detach().numpy(), parameter.grad.numpy()
        (found,) = (n for n in unmatched if any(np.array_equal(w, value) for w in (weights[n], weights[n].T)))
        unmatched.remove(found)
        wanted = slope if np.array_equal(weights[found], value) else slope.T
        np.testing.assert_allclose(given[found], wanted, atol=1e-4 * np.abs(slope).max(), err_msg=name)
    assert not unmatched
    return trainer


def check_trained(net: Any, data: bytes, steps: int = T) -> Trainer:
    """Every gradient is PyTorch's, found by the value of its weight."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((N, steps, WIDTH)).astype(np.float32), rng.integers(0, 3, N)
    net.zero_grad()
    arranged = torch.tensor(x.swapaxes(0, 1) if net.steps_first else x)
    torch.nn.functional.cross_entropy(net(arranged), torch.tensor(y)).backward()
    plain = {n: p.detach().numpy() for n, p in net.named_parameters()}
    slopes = {n: p.grad.numpy() for n, p in net.named_parameters()}
    values, wanted = dict(in_onnx(net, plain)), dict(in_onnx(net, slopes))
    others = {n for n in plain if not n.startswith("body.")}
    trainer = Trainer(compile(data, batch=N))
    _, given = trainer.gradients(x, y)
    weights = trainer.weights()
    unmatched = set(given)
    for pairs in ([(values[k], wanted[k]) for k in values], [(plain[n], slopes[n]) for n in others]):
        for value, slope in pairs:
            names = [n for n in unmatched if weights[n].shape == value.shape and np.array_equal(weights[n], value)]
            assert len(names) == 1, (value.shape, {n: w.shape for n, w in weights.items()})
            unmatched.remove(names[0])
            np.testing.assert_allclose(given[names[0]], slope, atol=1e-4 * np.abs(slope).max(), err_msg=names[0])
    assert not unmatched
    return trainer


OPTIONS: list[dict[str, Any]] = [
    {}, {"use": "mean", "bidirectional": True}, {"use": "states", "num_layers": 2, "bidirectional": True},
]  # fmt: skip
#: Kind, options, free batch. With a fixed batch the dynamo exporter folds parts of an RNN into a constant per sample.
DYNAMO = [("LSTM", OPTIONS[0], False), ("LSTM", OPTIONS[2], True), ("GRU", OPTIONS[1], True), ("RNN", OPTIONS[2], True)]


@pytest.mark.parametrize("free", [False, True], ids=["static", "free"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_exports_train_as_in_pytorch(kind: str, options: dict[str, Any], free: bool) -> None:
    torch.manual_seed(4)
    net = Net(kind, **options)
    check_trained(net, export(net, free, False))


@pytest.mark.parametrize(("kind", "options", "free"), DYNAMO, ids=str)
def test_exports_of_the_other_exporter_train_as_in_pytorch(kind: str, options: dict[str, Any], free: bool) -> None:
    torch.manual_seed(4)
    net = Net(kind, **options)
    (check_unrolled if kind == "RNN" else check_trained)(net, export(net, free, True))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_weights_behind_slices_and_learned_states_are_found(kind: str) -> None:
    """Without the exporter's folding, PyTorch's own parameters pass through Slice, Concat and Unsqueeze."""
    torch.manual_seed(4)
    net = Net(kind, use="mean", learned=True, bidirectional=True)
    data = export(net, True, False, do_constant_folding=False)
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((N, T, WIDTH)).astype(np.float32), rng.integers(0, 3, N)
    torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y)).backward()
    _, given = Trainer(compile(data, batch=N)).gradients(x, y)
    assert set(given) == {n for n, _ in net.named_parameters()}
    for name, parameter in net.named_parameters():
        slope = parameter.grad.numpy()
        np.testing.assert_allclose(given[name], slope, atol=1e-4 * np.abs(slope).max(), err_msg=name)


def test_an_initial_state_written_out_for_every_sample_is_one_weight() -> None:
    torch.manual_seed(4)
    net = Net("GRU", learned=True)
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((N, T, WIDTH)).astype(np.float32), rng.integers(0, 3, N)
    torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y)).backward()
    trainer = Trainer(compile(export(net, False, True), batch=N))
    _, given = trainer.gradients(x, y)
    value = net.h0.detach().numpy()
    found = next(g for n, g in given.items() if np.array_equal(trainer.weights()[n], value))
    np.testing.assert_allclose(found, net.h0.grad.numpy(), atol=1e-6)


class Packed(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.GRU(WIDTH, H, batch_first=True, bidirectional=True), torch.nn.Linear(2 * H, 3)

    def forward(self, x: Any, lengths: Any) -> Any:
        """[N, T, I], [N] -> [N, 3]."""
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, last = self.body(packed)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
        return self.head(y.sum(1) + torch.cat([last[0], last[1]], -1))


def test_packed_sequences_train_as_in_pytorch() -> None:
    torch.manual_seed(4)
    net, buffer = Packed(), io.BytesIO()
    lengths = np.array([2, T, 4])
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((N, T, WIDTH)).astype(np.float32), rng.integers(0, 3, N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.tensor(x), torch.tensor(lengths)), buffer, dynamo=False, opset_version=17,
            input_names=["x", "lengths"], dynamic_axes={"x": {0: "N"}, "lengths": {0: "N"}},
        )  # fmt: skip
    torch.nn.functional.cross_entropy(net(torch.tensor(x), torch.tensor(lengths)), torch.tensor(y)).backward()
    trainer = Trainer(compile(buffer.getvalue(), batch=N))
    _, given = trainer.gradients({"x": x, "lengths": lengths}, y)
    slopes = in_onnx(net, {n: p.grad.numpy() for n, p in net.named_parameters()})
    slopes |= {(1, n): p.grad.numpy() for n, p in net.named_parameters() if n.startswith("head")}
    assert len(given) == len(slopes)
    for slope in slopes.values():
        near = [g for g in given.values() if g.shape == slope.shape]
        assert min(np.abs(g - slope).max() for g in near) <= 1e-4 * np.abs(slope).max()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_long_sequences_stay_exact(kind: str) -> None:
    torch.manual_seed(6)
    net = Net(kind, bidirectional=True)
    with torch.no_grad():
        for parameter in net.body.parameters():
            parameter.mul_(2)
    check_trained(net, export(net, True, False, 80), 80)


@pytest.mark.parametrize(("use", "dynamo", "free"), [
    ("last", False, True), ("states", False, False), ("states", True, True),
], ids=str)  # fmt: skip
def test_models_with_steps_before_samples_take_samples_first(
    use: str, dynamo: bool, free: bool, tmp_path: Path
) -> None:
    """The exported model keeps its own order."""
    torch.manual_seed(4)
    net = Net("GRU", use, steps_first=True)
    trainer = check_trained(net, export(net, free, dynamo))
    trainer.export(tmp_path / "new.onnx")
    x = np.random.default_rng(1).standard_normal((T, N, WIDTH)).astype(np.float32)
    given = run_once(
        (tmp_path / "new.onnx").read_bytes(), {trainer.plan.info.inputs[0].name: x}, [trainer.plan.info.output]
    )
    np.testing.assert_allclose(given[0], net(torch.tensor(x)).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_keep_samples_first(kind: str) -> None:
    """The runtime has no kernels for layout 1: it is written out, in the exported model too."""
    op, attributes = KINDS[kind]
    attributes = attributes | {"direction": "bidirectional"}
    given = arguments(op, 2, True, True)
    outputs = "yhc" if op == "LSTM" else "yh"
    turned = {n: v.swapaxes(0, 1).copy() if n in ("x", "h0", "c0") else v for n, v in given.items()}
    proto, name = onnxio.load_model(model(op, attributes | {"layout": 1}, turned, outputs))
    proto = onnxio.normalize(proto, name)
    wanted = dict(zip("yhc", evaluate(op, attributes, given), strict=True))
    order = {"y": (2, 0, 1, 3), "h": (1, 0, 2), "c": (1, 0, 2)}
    for output, value in zip(outputs, run_once(proto.SerializeToString(), turned, list(outputs)), strict=True):
        np.testing.assert_allclose(value, wanted[output].transpose(order[output]), atol=1e-5)
    graph = onnxio.to_graph(proto, None, frozenset(), name)
    rng = np.random.default_rng(5)
    seeds = {o: rng.standard_normal(wanted[o].shape).astype(np.float32) for o in outputs}
    found = pull_back(graph, turned, {o: v.transpose(order[o]) for o, v in seeds.items()}, list(turned))
    plain, name = onnxio.load_model(model(op, attributes, given, outputs))
    expected = pull_back(onnxio.to_graph(plain, None, frozenset(), name), given, seeds, list(given))
    for n, slope in expected.items():
        slope = slope.swapaxes(0, 1) if n in ("x", "h0", "c0") else slope
        np.testing.assert_allclose(found[n], slope, atol=1e-5, err_msg=n)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"clip": 3.0}, "clip=3.0"), ({"input_forget": 1}, "input_forget=1"),
    ({"activations": ["Sigmoid", "ThresholdedRelu", "Tanh"]}, "ThresholdedRelu has no rule"),
    ({"activations": ["Sigmoid", "Tanh", "Tanh"], "activation_alpha": [0.1]}, "have parameters"),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_is_refused_is_named(attributes: dict[str, Any], message: str) -> None:
    given = arguments("LSTM", 1, False, True)
    proto, name = onnxio.load_model(model("LSTM", attributes, given, "y"))
    graph = onnxio.to_graph(proto, None, frozenset(), name)
    with pytest.raises(UnsupportedOperatorError, match=rf"LSTM .*layer.*{message}"):
        pull_back(graph, given, {"y": np.ones((T, 1, N, H))}, ["w"])


ACTIVATIONS = {"LSTM": ["HardSigmoid", "Relu", "Softsign"], "GRU": ["HardSigmoid", "Softsign"], "RNN": ["Relu"]}


@pytest.mark.parametrize("kind", KINDS)
def test_other_activations(kind: str) -> None:
    op, attributes = KINDS[kind]
    check(op, attributes | {"activations": ACTIVATIONS[op]}, arguments(op, 1, True, True), "yh")
