"""Gradients of a whole model, ours against PyTorch's, weight by weight.

Strategy: the exported model is trained by the engine, the module by PyTorch, on the same batch and loss. Every weight
that the engine found is matched with a parameter: by name where the exporter kept it, else by value, the exporter
having transposed it or reordered its gates. Where the exporter folded batch normalization into the layer before, the
module is folded as well. It is an error when a weight has no parameter or a parameter has no weight.

The error of a weight is max |ours - reference| / max |reference|, over its elements (for a weight whose gradient is
zero, over the model's largest). `error` takes PyTorch in float32 as the reference, `ours64` and `torch64` compare ours
and PyTorch's float32 with PyTorch in float64: where rounding of deep networks is larger than the bound, ours may not be
further from the truth than twice PyTorch's own error.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import fusion

from sanderling.engine import Trainer, compile

from . import ZOO, Array, export, module, sample, targets

BOUND = 1e-4
#: A gradient below this share of the model's largest one, in float64, is zero.
_ZERO = 1e-10
#: Learned numbers, which count as weights only where `trainable` names them: they look like settings of a formula.
SINGLE_NUMBERS = {"assorted": ["gate"]}
#: Batches that are tried where rounding moves an activation across its kink, which changes a deep network's gradient.
_SEEDS = 4
#: Gates as ONNX orders them, in terms of PyTorch's order (i f g o; r z n).
_GATES = {4: (0, 3, 1, 2), 3: (1, 0, 2)}


@dataclass(frozen=True)
class Agreement:
    """The largest errors over all weights, how many weights were compared, and where the worst one is."""

    weights: int
    error: float
    ours64: float
    torch64: float
    worst: str
    batches: int = 1

    @property
    def holds(self) -> bool:
        """Within the bound, or as close to float64 as PyTorch's own float32."""
        return self.error <= BOUND or self.ours64 <= max(BOUND, 2 * self.torch64)


def folded(net: nn.Module) -> nn.Module:
    """A copy with every batch normalization that follows a convolution or linear layer folded into it."""
    net = copy.deepcopy(net)
    for parent in [m for m in net.modules() if isinstance(m, nn.Sequential)]:
        for at in range(len(parent) - 1):
            layer, norm = parent[at], parent[at + 1]
            if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
                    parent[at] = fusion.fuse_conv_bn_eval(layer, norm)
                elif isinstance(layer, nn.Linear):
                    parent[at] = fusion.fuse_linear_bn_eval(layer, norm)
                else:
                    continue
                parent[at + 1] = nn.Identity()
    return net.requires_grad_()


def torch_gradients(net: nn.Module, inputs: Array, wanted: Array, loss: str, double: bool) -> dict[str, Array]:
    """{parameter name: gradient}; shared parameters once."""
    net = copy.deepcopy(net)
    x = torch.from_numpy(inputs)
    y = torch.from_numpy(wanted)
    if double:
        net = net.double()
        x, y = (t.double() if t.is_floating_point() else t for t in (x, y))
    out = net(x)
    if loss == "cross_entropy":
        value = nn.functional.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))
    else:
        value = nn.functional.mse_loss(out, y)
    value.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    return {n: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for n, p in net.named_parameters()}


def _forms(value: Array, rank: int) -> list[Array]:
    """The value as exporters write it: as it is, axes permuted, gates reordered, ones added or dropped."""
    forms = [value]
    if 2 <= value.ndim <= 3:
        forms += [value.transpose(order) for order in permutations(range(value.ndim))]
    for count, order in _GATES.items():
        if value.shape and value.shape[0] % count == 0:
            split = value.reshape(count, -1, *value.shape[1:])
            forms.append(split[list(order)].reshape(value.shape))
    return forms


class UnmatchedError(AssertionError):
    """Weights without parameter, or parameters without weight."""


@dataclass(frozen=True)
class Pair:
    """Where in a weight a parameter lies, and in which form."""

    weight: str
    part: tuple[slice, ...]
    parameter: str
    form: int


def _parts(value: Array) -> list[list[tuple[slice, ...]]]:
    """Ways to read a weight as parameters: whole, by direction, by direction and half (recurrent biases)."""
    ways: list[list[tuple[slice, ...]]] = [[()]]
    if value.ndim in (2, 3) and value.shape[0] <= 2:
        directions = [(slice(d, d + 1),) for d in range(value.shape[0])]
        ways.append(list(directions))
        half = value.shape[-1] // 2
        ways.append([(*d, *[slice(None)] * (value.ndim - 2), h) for d in directions
                     for h in (slice(0, half), slice(half, None))])  # fmt: skip
    return ways


def _find(value: Array, name: str, left: dict[str, Array]) -> tuple[str, int] | None:
    """The parameter that has this value in some form, the one of this name first."""
    shape = [n for n in value.shape if n != 1]
    for candidate in ([name] if name in left else []) + [c for c in left if c != name]:
        if left[candidate].size != value.size:
            continue
        for form, shaped in enumerate(_forms(left[candidate], value.ndim)):
            if [n for n in shaped.shape if n != 1] == shape and np.allclose(
                shaped.reshape(value.shape), value, rtol=1e-4, atol=1e-5
            ):
                return candidate, form
    return None


def match(weights: dict[str, Array], parameters: dict[str, Array]) -> list[Pair]:
    """Every weight's parameter, every parameter at least once; raises UnmatchedError otherwise.

    An exporter may write a shared parameter twice, as it is and transposed: its gradient is then the sum.
    """
    pairs: list[Pair] = []
    strange: list[str] = []
    for name, value in weights.items():
        for way in _parts(value):
            found = [(part, _find(value[part], name, parameters)) for part in way]
            if all(f is not None for _, f in found):
                pairs += [Pair(name, part, *f) for part, f in found if f is not None]
                break
        else:
            strange.append(f"{name} {value.shape}")
    missing = [f"{n} {v.shape}" for n, v in parameters.items() if n not in {p.parameter for p in pairs}]
    if strange or missing:
        raise UnmatchedError(f"weights without parameter: {strange}; parameters without weight: {missing}")
    return pairs


def compare(
    name: str, exporter: str, dynamic: bool, keep: bool, opset: int | None = None, net: nn.Module | None = None,
    **plan: Any,
) -> Agreement:  # fmt: skip
    """Take one step's gradients with both, and compare. `plan`: arguments of `compile`.

    Where the first batch is not within the bound, others are tried: a wrong gradient is wrong on every batch.
    """
    net = module(name) if net is None else net
    model = export(net, sample(name), exporter, dynamic, opset, keep)
    nets = [net] if keep else [net, folded(net)]
    found = [_on_batch(name, model, nets, 0, plan)]
    while found[-1].error > BOUND and len(found) < _SEEDS:
        found.append(_on_batch(name, model, nets, len(found), plan))
    best = min(found, key=lambda a: (not a.holds, a.error))
    return replace(best, batches=len(found))


def _on_batch(name: str, model: bytes, nets: list[nn.Module], seed: int, plan: dict[str, Any]) -> Agreement:
    """The comparison on one batch, with the first of these modules that has the model's weights."""
    entry = ZOO[name]
    x = sample(name, seed=seed)
    with torch.no_grad():
        y = targets(name, tuple(nets[0](torch.from_numpy(x)).shape), seed)
    if name in SINGLE_NUMBERS:
        plan = {"trainable": ["*", *SINGLE_NUMBERS[name]], **plan}
    trainer = Trainer(compile(model, loss=entry.loss, batch=len(x), **plan))
    weights = trainer.weights()
    _, ours = trainer.gradients(x, y)
    problem: UnmatchedError | None = None
    for net in nets:
        try:
            pairs = match(weights, {n: p.detach().numpy() for n, p in net.named_parameters()})
        except UnmatchedError as error:
            problem = error
            continue
        single, double = (torch_gradients(net, x, y, entry.loss, precise) for precise in (False, True))
        return _agreement(pairs, ours, single, double)
    assert problem is not None
    raise problem


def _agreement(
    pairs: list[Pair], ours: dict[str, Array], single: dict[str, Array], double: dict[str, Array]
) -> Agreement:
    worst, where, against, own = 0.0, "", 0.0, 0.0
    largest = max(float(np.abs(g).max()) for g in double.values())
    for parameter, truth in double.items():
        given = np.zeros(truth.shape)
        for pair in (p for p in pairs if p.parameter == parameter):
            part = np.asarray(ours[pair.weight], np.float64)[pair.part]
            given += _restored(part, truth.shape, pair.form)
        scale = float(np.abs(truth).max())
        if scale < _ZERO * largest:
            scale = largest  # zero but for rounding: a bias before a normalization
        error = float(np.abs(given - single[parameter]).max()) / scale
        if error > worst or not np.isfinite(error):
            worst, where = error, parameter
        against = max(against, float(np.abs(given - truth).max()) / scale)
        own = max(own, float(np.abs(single[parameter] - truth).max()) / scale)
    return Agreement(len(double), worst, against, own, where)


def _restored(value: Array, shape: tuple[int, ...], form: int) -> Array:
    """A gradient in the exporter's form, in the parameter's own."""
    places = _forms(np.arange(int(np.prod(shape))).reshape(shape), value.ndim)[form].reshape(-1)
    result = np.zeros(value.size)
    result[places] = value.reshape(-1)
    return result.reshape(shape)
