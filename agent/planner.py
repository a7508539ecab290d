"""The planner child: how to train a model under the limit, worked out where memory does not count.

Planning needs the `onnx` library and tries things; the trainer may use neither. So this child writes what the trainer
needs, named by content: the plan, by the model's structure and the settings (a new release with other weights finds it
there), and the weights of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import msgspec
import onnx

from sanderling.engine import compile as compile_plan
from sanderling.engine import load_plan, read_weights
from sanderling.engine.errors import EngineError, PlanError
from sanderling.engine.plancache import circumstances
from sanderling.host.files import write_durably

from . import children
from .errors import StorageFullError, TrainingError, storage_errors
from .jobs import PlanDone, PlanJob
from .tensors import pack

#: Bytes that the agent's trainer takes beyond what a plan is measured with: SQLite, the codec, one batch of samples,
#: and (in multiples of the model file) copies of the weights while a delta is coded and two models are compared.
RESERVE, RESERVE_MODELS = 8 * 2**20, 4
_FORMAT = 1


def plan(job: PlanJob) -> PlanDone:
    """Plan, or find the plan of an earlier release; raises `TrainingError`."""
    children.yield_to_others()
    data = Path(job.model).read_bytes()
    directory = Path(job.directory)
    try:
        weights = read_weights(data)
        key = structure(data, weights, job)
        path = directory / f"{key}.plan"
        peak = _peak(path)
        if peak == 0:
            made = compile_plan(
                data,
                loss="cross_entropy",
                batch=job.batch,
                memory_limit=job.memory_limit,
                optimizer=job.optimizer,
                reserve=RESERVE + RESERVE_MODELS * len(data),
            )
            with storage_errors("saving the training plan"):
                made.save(path)
            peak = made.peak_bytes
    except StorageFullError as error:
        raise TrainingError(str(error)) from error
    except EngineError as error:
        raise TrainingError(f"this model cannot be trained here: {error}", permanent=True) from error
    values = directory / f"{hashlib.sha256(data).hexdigest()[:32]}.weights"
    with storage_errors("saving the model's weights"):
        write_durably(values, pack(dict(weights)))
    return PlanDone(str(path), str(values), peak)


def _peak(path: Path) -> int:
    """The peak that an earlier planner predicted, 0 when there is no such plan or it is damaged."""
    try:
        return load_plan(path).peak_bytes if path.exists() else 0
    except PlanError:
        return 0


def structure(data: bytes, weights: Collection[str], job: PlanJob) -> str:
    """A name for all that a plan depends on: the model without its weights' values, the settings, the planner itself.

    (The engine's own cache goes by the whole model; here releases with other weights share a plan.)
    """
    model = onnx.load_model_from_string(data)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            for field in ("raw_data", "float_data"):
                tensor.ClearField(field)
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    settings = msgspec.json.encode((_FORMAT, circumstances(), job.memory_limit, job.batch, job.optimizer, len(data)))
    return hashlib.sha256(settings + model.SerializeToString(deterministic=True)).hexdigest()[:32]


if __name__ == "__main__":
    children.work(PlanJob, plan)
