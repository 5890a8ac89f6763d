"""Optimizers: every dense one of `torch.optim` as it is, and the parameter groups that it is given.

Left out are `LBFGS`, whose step evaluates the model again through a closure, and `SparseAdam`, which takes sparse
gradients only. `Muon` is torch's for the weight matrices of hidden layers with torch's AdamW for everything else.

Every trainable parameter is in exactly one group, a tied one once. Weight decay does not touch biases and norms unless
the spec asks for it, and parameters may have learning rates of their own. Each group carries the names of its
parameters as `param_names`, and as `initial_lr` the learning rate that a schedule multiplies.

Facts of an entry: `matrices`, a function of the model that returns the only parameters that the optimizer is for;
`initial_lr_only`, that it reads its learning rate at the first step and adapts it itself, so that a schedule has no
effect (`ASGD` reads it one step late).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from fitkit.errors import listing, show
from fitkit.spec.component import Component
from fitkit.spec.table import Table
from fitkit.spec.types import Positive, Range

Names = dict[nn.Parameter, list[str]]  # every name of each trainable parameter, in the order of the model

# BatchNorm1d, LayerNorm, RMSNorm, ... of torch, their subclasses, and the norms that people write themselves
_NORM = re.compile(r"Norm(\dd)?$")


def parameter_groups(
    component: Component,
    model: nn.Module,
    *,
    no_decay: Literal["bias_and_norm", "none"] | list[str] = "bias_and_norm",
    lr_patterns: dict[str, Positive] | None = None,
) -> list[dict[str, Any]]:
    """Return torch's parameter groups for a model: one for each learning rate and weight decay that occur.

    `no_decay` says which parameters have weight decay 0: biases and the parameters of norms (a module whose class, or
    a base of it, is named `…Norm`, `…Norm1d`, …); none; or those whose names match one of a list of patterns
    ("encoder.*.embed*", as in `fnmatch`). `lr_patterns` gives parameters whose names match a pattern a learning rate
    of their own. A pattern that matches nothing, a parameter that matches two, and a model that has nothing to train
    are `SpecError`s.
    """
    names: Names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    if not names:
        raise component.error("the model has no trainable parameter. Give it a layer with weights, or unfreeze one.")
    undecayed = _undecayed(component, model, names, no_decay)
    rates = _own_rates(component, names, lr_patterns or {})
    matrices = _matrices(component, model, names)
    decay = component.get("weight_decay")
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for parameter, (name, *_) in names.items():
        lr = component.get("lr")
        options: dict[str, Any] = {}
        if matrices is not None:
            options["use_muon"] = parameter in matrices
            lr = lr if parameter in matrices else component.get("adamw_lr")
        options["lr"] = rates.get(parameter, lr)
        if decay is not None:
            options["weight_decay"] = 0.0 if parameter in undecayed else decay
        group = groups.setdefault(tuple(options.values()), {"params": [], **options})
        group["params"].append((name, parameter))
    # a history shows the learning rate of the first group, which is to be the spec's
    return sorted(groups.values(), key=lambda group: bool(group["lr"] != component.get("lr")))


optimizers = Table(
    "optimizer",
    shared=parameter_groups,
    omit=("params", "foreach", "maximize", "fused", "capturable", "differentiable"),
    refine={
        "lr": Range(low=0, open_low=True),
        "weight_decay": Range(low=0),
        "momentum": Range(low=0, high=1, open_high=True),
        "dampening": Range(low=0, high=1),
        "betas": Range(low=0, high=1, open_high=True),
        "eps": Range(low=0, open_low=True),
        "momentum_decay": Range(low=0),
        "lr_decay": Range(low=0),
        "initial_accumulator_value": Range(low=0),
        "rho": Range(low=0, high=1, open_high=True),
        "alpha": Range(low=0, high=1, open_high=True),
        "lambd": Range(low=0),
        "t0": Range(low=0),
        "etas": Range(low=0, open_low=True),
        "step_sizes": Range(low=0, open_low=True),
        "beta2_decay": Range(high=0),
        "d": Range(low=1),
        "ns_steps": Range(low=1, high=99),
    },
)


def build_optimizer(component: Component, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer that a spec names, for the trainable parameters of a model that is on `device`.

    It is fused (one kernel for all parameters of a group) where torch can. Arguments that torch refuses together, and
    the mistakes that `parameter_groups` finds, are `SpecError`s.
    """
    groups = parameter_groups(component, model, **component.shared())
    fused = {"fused": True} if _fuses(component, model, device) else {}
    optimizer: torch.optim.Optimizer = component.build(groups, **fused)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """Return the 2-D weights of `Linear` and `MultiheadAttention` layers, without the output layer's.

    The output layer is the last `Linear` in the order of `model.modules()`. A weight tied to an embedding is left out.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    attention = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    embedding = [module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    hidden = _own_parameters([*linear, *attention]) - _own_parameters([*linear[-1:], *embedding])
    return {parameter for parameter in hidden if parameter.dim() == 2}


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for the weight matrices of hidden layers, AdamW for all other parameters.

    `torch.optim.Muon` steps the groups that say `use_muon`, `torch.optim.AdamW` the others: biases, norms, embeddings,
    convolutions, and the output layer. `adamw_lr` is their learning rate (with `adjust_lr_fn: match_rms_adamw`, one
    learning rate suits both); weight decay is shared. All other arguments are those of `torch.optim.Muon`.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        adamw_lr: Positive = 3e-4,
        fused: bool = False,
    ) -> None:
        groups = list(params)
        matrices = [group for group in groups if group.get("use_muon")]
        others = [group for group in groups if not group.get("use_muon")]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn
            )
            self.parts.append(muon)
        if others:
            self.parts.append(torch.optim.AdamW(others, adamw_lr, weight_decay=weight_decay, fused=fused))
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step both parts, on the groups and the state of this object: they are the only ones that are saved."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.bound_parts():
            part.step()
        return loss

    def bound_parts(self) -> list[torch.optim.Optimizer]:
        """Return torch's optimizers that this one consists of, on its own groups and state."""
        for part in self.parts:
            use_muon = isinstance(part, torch.optim.Muon)
            part.param_groups = [group for group in self.param_groups if group.get("use_muon", False) == use_muon]
            part.state = self.state
        return self.parts


for _kind in (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.ASGD,
    torch.optim.RMSprop,
    torch.optim.Adafactor,
):
    optimizers.add(_kind, primary="lr")
optimizers.add(torch.optim.Rprop, primary="lr", initial_lr_only=True)
optimizers.add(Muon, primary="lr", matrices=hidden_matrices)


def _undecayed(component: Component, model: nn.Module, names: Names, no_decay: str | list[str]) -> set[nn.Parameter]:
    if no_decay == "none":
        return set()
    if no_decay == "bias_and_norm":
        norms = [m for m in model.modules() if any(_NORM.search(base.__name__) for base in type(m).__mro__)]
        return _own_parameters(norms) | {parameter for parameter in names if any(map(_is_bias, names[parameter]))}
    return {parameter for pattern in no_decay for parameter in _matching(component, "no_decay", pattern, names)}


def _is_bias(name: str) -> bool:
    """Tell whether a parameter is a bias by its own name: bias, in_proj_bias, bias_ih_l0."""
    return "bias" in name.rpartition(".")[2].split("_")


def _own_rates(component: Component, names: Names, lr_patterns: dict[str, float]) -> dict[nn.Parameter, float]:
    pattern_of: dict[nn.Parameter, str] = {}
    for pattern in lr_patterns:
        for parameter in _matching(component, "lr_patterns", pattern, names):
            if parameter in pattern_of:
                both = f"{show(pattern_of[parameter])} and {show(pattern)}"
                message = f"{names[parameter][0]} matches both {both}. Give each parameter one learning rate."
                raise component.error(message, "lr_patterns")
            pattern_of[parameter] = pattern
    return {parameter: lr_patterns[pattern] for parameter, pattern in pattern_of.items()}


def _matching(component: Component, argument: str, pattern: str, names: Names) -> list[nn.Parameter]:
    found = [p for p, known in names.items() if any(fnmatchcase(name, pattern) for name in known)]
    if not found:
        known = listing(known[0] for known in names.values())
        raise component.error(f"{show(pattern)} matches no trainable parameter. They are {known}.", argument)
    return found


def _matrices(component: Component, model: nn.Module, names: Names) -> set[nn.Parameter] | None:
    """Return the parameters that the optimizer is for; None: it is for all of them."""
    if "matrices" not in component.entry.facts:
        return None
    matrices: set[nn.Parameter] = component.entry.facts["matrices"](model)
    if matrices.isdisjoint(names):
        raise component.error(
            f"{component.name} is for the weights of hidden Linear layers, and this model trains none. Use AdamW."
        )
    return matrices


def _own_parameters(modules: Iterable[nn.Module]) -> set[nn.Parameter]:
    return {parameter for module in modules for parameter in module.parameters(recurse=False)}


def _fuses(component: Component, model: nn.Module, device: torch.device) -> bool:
    """Tell whether torch has a fused step for this optimizer, device and every dtype, by taking one on a zero."""
    factory = component.entry.factory
    if "fused" not in inspect.signature(factory).parameters:
        return False
    if factory is torch.optim.SGD and component.get("momentum"):
        return False  # its momentum starts from uninitialised memory when the first step is skipped or has no gradient
    if any(getattr(module, "sparse", False) for module in model.modules()):
        return False  # an Embedding with sparse gradients, which fused kernels refuse
    dtypes = dict.fromkeys(parameter.dtype for parameter in model.parameters() if parameter.requires_grad)
    probes = [torch.zeros(1, dtype=dtype, device=device) for dtype in dtypes]
    for probe in probes:
        probe.grad = torch.zeros_like(probe)
    try:
        factory([{"params": probes}], **component.own(), fused=True).step()
    except (RuntimeError, TypeError, ValueError):
        return False
    return True
