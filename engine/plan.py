"""A training plan: what `compile` decided, ready to run, in one file. Needs no `onnx`.

The file is a zip archive without compression: `plan.json` (a `Description`), one ONNX model per step, and the
inference model whose weights the plan starts from. Reading checks the version, every name and every size, and
raises PlanError for anything else.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ..host.files import open_durably
from .errors import PlanError
from .footprint import Footprint
from .members import MODEL, PROBE, InFile, InMemory, Members, step_name

VERSION = 1
#: What stands before a tensor's name in the name of its gradient.
GRADIENT = "gradient/"
#: What stands before a weight's name in the name of its value after the step, where no optimizer moves it.
UPDATE = "update/"
_DESCRIPTION = "plan.json"
#: The largest `plan.json` that is read, in bytes: a name and a shape per tensor of a very large model.
_DESCRIPTION_LIMIT = 64 * 2**20


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name, element type (numpy name) and static shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the integers q of one weight stand for real values: scale (q - zero point).

    `scale` and `zero_point` are little-endian float32 and int32: one number for the whole tensor, one per index along
    `axis`, or with `block` > 0 one per `block` neighbours along `axis` (then in the shape of the tensor, that axis
    divided). Training keeps the integers between `low` and `high`.
    """

    weight: str
    dtype: str
    shape: tuple[int, ...]
    scale: bytes
    zero_point: bytes
    axis: int
    block: int
    low: int
    high: int


class StepInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One session of a training step: what it reads and writes, by name."""

    kind: str
    segment: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    workspace: int
    operators: int
    #: Bytes alive inside the session while each of its nodes runs.
    alive: tuple[int, ...]
    seconds: float = 0.0  # predicted, good for comparing


class Adapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One weight with a low-rank adapter (`adapters.py`). `down` leads to `rank` channels, `up` back.

    `rows`: W is [in, out], down [in, rank], up [rank, out]. Else W is [out, in, ...], down [rank, in, ...] and up
    [out, rank, 1...].
    """

    weight: str
    down: str
    up: str
    rank: int
    scale: float
    rows: bool
    seed: int


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything of a plan but the models."""

    version: int
    source: str
    loss: str
    loss_options: dict[str, float | tuple[float, ...]]
    optimizer: str
    batch: int
    micro_batch: int
    segments: int
    threads: int
    block: int  # channels per block of the runtime's blocked operators in the steps; 0: there are none
    memory_limit: int | None
    measured: bool  # whether a trial run corrected the footprint and measured the seconds
    recompute_ratio: float
    output: str
    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    classes: int
    weights: tuple[Tensor, ...]
    trainable: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    steps: tuple[StepInfo, ...]
    adapters: tuple[Adapter, ...] = ()
    optimizer_state: str = "float32"  # a name of `optimizers.STATE_FORMATS`
    gradient_sums: str = "float32"  # in what gradients are added up over micro-batches and calls
    hold_gradients: bool = False  # whether all gradients of a step are held at once, and counted in the peak
    checkpoints: str = "float32"  # how tensors are stored that are recomputed from: "float32" or "int8"
    seconds: float = 0.0  # of a step: measured in the trial run, else only good for comparing plans
    footprint: Footprint = Footprint()
    arena: int = 0  # bytes of the arena that all sessions share
    cuts: tuple[int, ...] = ()  # where the model's nodes are cut into segments: the first node of each but the first
    nodes: int = 0  # of the model, its loss among them
    whole: str = ""  # why a batch must have exactly `batch` samples: what mixes them; empty where any number will do
    quantized: tuple[Quantization, ...] = ()  # of the weights that are integers

    @property
    def peak_bytes(self) -> int:
        """Predicted most resident memory of a lean process that loads this plan and trains, in bytes."""
        return self.footprint.total

    @property
    def baseline_bytes(self) -> int:
        """Resident memory of that process before it trains, in bytes."""
        return self.footprint.baseline


@dataclass(slots=True)
class TrainingPlan:
    """How to train one model inside a memory limit. Made by `compile` or `load_plan`; run by `Trainer`."""

    info: Description
    members: Members = field(repr=False)

    @classmethod
    def of(cls, info: Description, steps: list[bytes], model: bytes, probe: bytes) -> TrainingPlan:
        """A plan that was just made: `steps` in the order of its description, the model that it starts from."""
        named = {step_name(i): step for i, step in enumerate(steps)}
        return cls(info, InMemory({**named, MODEL: model, PROBE: probe}))

    @property
    def models(self) -> list[bytes]:
        """The models of all steps (copies, where the plan is in a file)."""
        return [self.step(i) for i in range(len(self.info.steps))]

    def step(self, index: int) -> bytes:
        """The model of one step."""
        return self.members.read(step_name(index))

    @property
    def model(self) -> bytes:
        """The inference model that the plan starts from (a copy, where the plan is in a file)."""
        return self.members.read(MODEL)

    def view_model(self) -> memoryview:
        """The same without a copy."""
        return self.members.view(MODEL)

    @property
    def probe(self) -> bytes:
        """See `blocked.py`; empty where no step needs it."""
        return self.members.read(PROBE)

    @property
    def peak_bytes(self) -> int:
        """Predicted most resident memory of a lean process that loads this plan and trains, in bytes."""
        return self.info.peak_bytes

    @property
    def segments(self) -> int:
        """Number of segments that the forward pass is cut into."""
        return self.info.segments

    @property
    def micro_batch(self) -> int:
        """Samples that pass through a session at once; gradients add up to the whole batch."""
        return self.info.micro_batch

    @property
    def recompute_ratio(self) -> float:
        """Share of the forward operators that run twice, 0 to 1."""
        return self.info.recompute_ratio

    def describe(self) -> str:
        """Tables that a person can read: choices, memory, segments."""
        from .describe import text

        return text(self.info)

    def save(self, path: str | Path) -> None:
        """Write the plan as one file: whole or not at all. Raises OSError."""
        with open_durably(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:
            self.write_into(archive)

    def write_into(self, archive: zipfile.ZipFile) -> None:
        """Add the plan's members to an archive."""
        archive.writestr(_DESCRIPTION, msgspec.json.encode(self.info))
        for name in (PROBE, *(step_name(i) for i in range(len(self.info.steps)))):
            archive.writestr(name, self.members.read(name))
        with archive.open(MODEL, "w", force_zip64=True) as member:
            for piece in self.members.pieces(MODEL):
                member.write(piece)


def read_plan(archive: zipfile.ZipFile, name: str) -> TrainingPlan:
    """The plan inside an archive. Raises PlanError."""
    try:
        if archive.getinfo(_DESCRIPTION).file_size > _DESCRIPTION_LIMIT:
            raise PlanError(f"{name}: its description is larger than any plan's")
        raw = archive.read(_DESCRIPTION)
        version = msgspec.json.decode(raw, type=_Versioned).version
        if version != VERSION:
            raise PlanError(f"{name}: is of version {version}, this program reads {VERSION}; make the plan again")
        info = msgspec.json.decode(raw, type=Description)
        members = InFile(archive)
        for member in (MODEL, PROBE, *(step_name(i) for i in range(len(info.steps)))):
            members.check(member)
        return TrainingPlan(info, members)
    except (KeyError, zipfile.BadZipFile, msgspec.MsgspecError, ValueError, EOFError, NotImplementedError,
            RuntimeError, OSError) as error:  # fmt: skip
        raise PlanError(f"{name}: is not a training plan, or is damaged ({error}); make it again") from error


class _Versioned(msgspec.Struct):
    version: int


def load_plan(path: str | Path) -> TrainingPlan:
    """Read a plan that `TrainingPlan.save` wrote. Raises PlanError."""
    try:
        with zipfile.ZipFile(path) as archive:
            return read_plan(archive, str(path))
    except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise PlanError(f"{path}: is not a training plan, or is damaged ({error}); make it again") from error
