"""fitkit: one YAML file declares a PyTorch experiment, `fit` runs it and returns a History.

    history = fitkit.fit("specs/digits.yaml")
    history = fitkit.Model(my_module).fit(spec, data=(x, y))

Importing this package imports no torch: each public name is loaded when it is first used.
"""

from __future__ import annotations

import gc
import importlib
from typing import TYPE_CHECKING, Any

from fitkit.errors import CheckpointError, DataError, DataWarning, FitkitError, SpecError, TrainingError
from fitkit.history import History

if TYPE_CHECKING:
    from fitkit import register as register
    from fitkit.after.compare import Comparison as Comparison
    from fitkit.after.compare import compare as compare
    from fitkit.after.diagnose import diagnose as diagnose
    from fitkit.after.lr_find import LRFind as LRFind
    from fitkit.after.lr_find import lr_find as lr_find
    from fitkit.after.plan import Plan as Plan
    from fitkit.after.plan import plan as plan
    from fitkit.after.report import report as report
    from fitkit.builder import build as build
    from fitkit.builder import load_spec as load_spec
    from fitkit.cross_validation import CrossValidation as CrossValidation
    from fitkit.model import Model as Model
    from fitkit.model import fit as fit
    from fitkit.model import load as load
    from fitkit.parts.callback import Callback as Callback
    from fitkit.parts.callback import LambdaCallback as LambdaCallback
    from fitkit.spec.spec import Spec as Spec
    from fitkit.trainer import Trainer as Trainer

__version__ = "0.1.0"

_WHERE = {
    "Callback": "fitkit.parts.callback",
    "Comparison": "fitkit.after.compare",
    "CrossValidation": "fitkit.cross_validation",
    "LRFind": "fitkit.after.lr_find",
    "LambdaCallback": "fitkit.parts.callback",
    "Model": "fitkit.model",
    "Plan": "fitkit.after.plan",
    "Spec": "fitkit.spec.spec",
    "Trainer": "fitkit.trainer",
    "build": "fitkit.builder",
    "compare": "fitkit.after.compare",
    "diagnose": "fitkit.after.diagnose",
    "fit": "fitkit.model",
    "load": "fitkit.model",
    "load_spec": "fitkit.builder",
    "lr_find": "fitkit.after.lr_find",
    "plan": "fitkit.after.plan",
    "report": "fitkit.after.report",
}

__all__ = [
    "Callback",
    "CheckpointError",
    "Comparison",
    "CrossValidation",
    "DataError",
    "DataWarning",
    "FitkitError",
    "History",
    "LRFind",
    "LambdaCallback",
    "Model",
    "Plan",
    "Spec",
    "SpecError",
    "Trainer",
    "TrainingError",
    "build",
    "compare",
    "diagnose",
    "fit",
    "load",
    "load_spec",
    "lr_find",
    "plan",
    "register",
    "report",
]


def __getattr__(name: str) -> Any:
    if name == "register":
        return importlib.import_module("fitkit.register")
    if name not in _WHERE:
        raise AttributeError(f"module 'fitkit' has no attribute {name!r}")
    collects = gc.isenabled()
    gc.disable()  # else the import makes the collector look through all of torch, which takes longer than the import
    try:
        return getattr(importlib.import_module(_WHERE[name]), name)
    finally:
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
