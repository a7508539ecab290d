"""One measured process of `speed.py`: load what a folder holds, train on one batch, print figures as JSON.

    python _measured.py KIND OPTIMIZER THREADS SECONDS FOLDER

Strategy: each kind is a function that imports only what it needs and returns one training step; the parent's clock
starts before this process exists (`SANDERLING_STARTED`, CLOCK_MONOTONIC, which all processes of a machine share), so
that the time to the first finished step counts the interpreter, imports, loading and whatever is compiled.

The folder holds `plan` (ours), `net.pt` (PyTorch), `model.onnx` with a fixed batch (the peers), `batch.npz`, and
`case.json`: the loss, and the names of the weights to train.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = Callable[[], float]
RATE = 1e-4


def ours(folder: Path, optimizer: str, threads: int) -> Step:
    """A plan read from its file, as a device does."""
    import numpy as np

    from sanderling.engine import Trainer, load_plan

    plain: dict[str, Any] = {"momentum": 0.0} if optimizer == "sgd-plain" else {}
    trainer = Trainer(load_plan(folder / "plan"), learning_rate=RATE, **plain)
    batch = np.load(folder / "batch.npz")
    x, y = batch["x"], batch["y"]
    return lambda: trainer.step(x, y)


def folded(folder: Path, optimizer: str, threads: int) -> Step:
    """Eager PyTorch with batch normalization folded into convolutions, as the exporter folds it."""
    return pytorch(folder, optimizer, threads, fold=True)


def pytorch(folder: Path, optimizer: str, threads: int, fold: bool = False) -> Step:
    """Eager PyTorch; batch normalization with frozen statistics, as in the exported model."""
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    net = torch.load(folder / "net.pt", weights_only=False).eval()
    if fold:
        from torch.fx.experimental.optimization import fuse

        net = fuse(net)
    batch = _arrays(folder)
    x, y = torch.from_numpy(batch["x"]), torch.from_numpy(batch["y"])
    loss = torch.nn.functional.cross_entropy if batch["y"].dtype.kind == "i" else torch.nn.functional.mse_loss
    update: torch.optim.Optimizer = (
        torch.optim.Adam(net.parameters(), lr=RATE)
        if optimizer == "adam"
        else torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.0 if optimizer == "sgd-plain" else 0.9)
    )

    def step() -> float:
        update.zero_grad()
        output = net(x)
        value = loss(output.flatten(0, -2), y.flatten()) if batch["y"].dtype.kind == "i" else loss(output, y)
        value.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        update.step()
        return float(value.detach())

    return step


def onnxruntime_training(folder: Path, optimizer: str, threads: int) -> Step:
    """The last training build of onnxruntime; its SGD has no momentum."""
    if optimizer == "sgd":
        raise SystemExit("its SGD has no momentum: compare sgd-plain")
    import onnx
    import onnxruntime as ort
    from onnxruntime.training import artifacts
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    case = json.loads((folder / "case.json").read_text())
    made = folder / f"artifacts-{optimizer}"
    if not (made / "checkpoint").exists():
        made.mkdir(exist_ok=True)
        losses = {"cross_entropy": artifacts.LossType.CrossEntropyLoss, "mse": artifacts.LossType.MSELoss}
        artifacts.generate_artifacts(
            onnx.load(folder / "model.onnx"), requires_grad=case["weights"], loss=losses[case["loss"]],
            optimizer=artifacts.OptimType.AdamW if optimizer == "adam" else artifacts.OptimType.SGD,
            artifact_directory=made,
        )  # fmt: skip
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    state = CheckpointState.load_checkpoint(made / "checkpoint")
    module = Module(made / "training_model.onnx", state, device="cpu", session_options=options)
    update = Optimizer(made / "optimizer_model.onnx", module)
    update.set_learning_rate(RATE)
    batch = _arrays(folder)
    x, y = batch["x"], batch["y"]
    module.train()

    def step() -> float:
        loss = float(module(x, y))
        update.step()
        module.lazy_reset_grad()
        return loss

    return step


def onnxsim(folder: Path, optimizer: str, threads: int) -> Step:
    """onnxsim's training loop: one graph for the whole step. The loss is appended in operators that it knows."""
    if optimizer == "sgd-plain":
        raise SystemExit("its SGD always has momentum: compare sgd")
    import numpy as np
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    original = ort.SessionOptions

    def options() -> Any:  # it offers no choice of threads: the runtime's default would be all of them
        chosen = original()
        chosen.intra_op_num_threads = threads
        return chosen

    ort.SessionOptions = options
    import onnxsim as peer  # type: ignore[import-not-found]  # only in its own environment

    case = json.loads((folder / "case.json").read_text())
    model, _ = peer.simplify(onnx.load(folder / "model.onnx"))  # it needs every shape to be known
    for node in [n for n in model.graph.node if n.op_type == "Constant"]:  # and constants as initializers
        value = helper.get_attribute_value(node.attribute[0])
        value.name = node.output[0]
        model.graph.initializer.append(value)
        model.graph.node.remove(node)
    held = {tensor.name for tensor in model.graph.initializer}
    weights = [name for name in case["weights"] if name in held]
    batch = _arrays(folder)
    output = model.graph.output[0]
    for node in model.graph.node:
        if node.op_type == "Flatten" and all(a.i == 1 for a in node.attribute):  # as the Reshape that it knows
            node.op_type = "Reshape"
            del node.attribute[:]
            node.input.append("flat.shape")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, -1], np.int64), "flat.shape"))
    shape = [d.dim_value for d in output.type.tensor_type.shape.dim]
    if case["loss"] == "cross_entropy":
        y = np.eye(shape[-1], dtype=np.float32)[batch["y"]]
        nodes = [
            helper.make_node("Softmax", [output.name], ["loss.p"], axis=-1),
            helper.make_node("Log", ["loss.p"], ["loss.log"]),
            helper.make_node("Mul", ["loss.log", "y"], ["loss.each"]),
        ]
        scale = -1.0 / batch["y"].size
    else:
        y = batch["y"]
        nodes = [
            helper.make_node("Sub", [output.name, "y"], ["loss.d"]),
            helper.make_node("Mul", ["loss.d", "loss.d"], ["loss.each"]),
        ]
        scale = 1.0 / y.size
    nodes += [
        helper.make_node("ReduceSum", ["loss.each"], ["loss.sum"], keepdims=0),
        helper.make_node("Mul", ["loss.sum", "loss.scale"], ["loss"]),
    ]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "loss.scale"))
    model.graph.input.append(helper.make_tensor_value_info("y", 1, list(y.shape)))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("loss", 1, []))
    loop = peer.compile_training_loop(
        model, "loss", weights, optimizer="adam" if optimizer == "adam" else "sgd_momentum"
    )
    return lambda: float(loop({"x": batch["x"], "y": y}, lr=RATE))


def _arrays(folder: Path) -> dict[str, Any]:
    import numpy as np

    return dict(np.load(folder / "batch.npz"))


KINDS: dict[str, Callable[[Path, str, int], Step]] = {
    "ours": ours, "pytorch": pytorch, "pytorch-folded": folded,
    "onnxruntime-training": onnxruntime_training, "onnxsim": onnxsim,
}  # fmt: skip


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def main(kind: str, optimizer: str, threads: int, seconds: float, folder: Path) -> None:
    """Take steps for some seconds, five at least after two that warm up."""
    step = KINDS[kind](folder, optimizer, threads)
    loss = step()
    first = time.monotonic() - float(os.environ["SANDERLING_STARTED"])
    step(), step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    worked = time.process_time()
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    cpu = (time.process_time() - worked) / len(times)
    print(json.dumps({"step": statistics.median(times), "cpu": cpu, "first": first, "peak": _peak(), "loss": loss}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
