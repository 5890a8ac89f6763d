"""What fitkit's own code may never do, found in its syntax tree; and that the gate would notice each of these."""

import ast
import typing
from pathlib import Path

import pytest

from fitkit.builder.tables import TABLES
from fitkit.spec.types import InputPath, OutputPath
from fitkit.spec.values import options

PACKAGE = Path(__file__).parent.parent / "fitkit"

# Modules that run or load code, or open the network, and the only files that may import one.
MODULES = {
    **dict.fromkeys(("pickle", "_pickle", "cPickle", "pickletools", "marshal", "dill", "joblib", "cloudpickle"), ()),
    **dict.fromkeys(("shelve", "dbm", "copyreg", "code", "codeop", "pty", "ctypes", "cffi", "imp", "pkgutil"), ()),
    **dict.fromkeys(("socket", "socketserver", "ssl", "urllib", "urllib3", "http", "ftplib", "smtplib"), ()),
    **dict.fromkeys(("requests", "httpx", "aiohttp", "asyncio", "xmlrpc", "webbrowser"), ()),
    **dict.fromkeys(("torch.hub", "torch.package", "torch.utils.cpp_extension", "torch.utils.model_zoo"), ()),
    **dict.fromkeys(("pdb", "bdb", "builtins", "pydoc", "timeit", "doctest"), ()),
    "multiprocessing": ("engine/workers.py",),  # to end workers that read a Dataset given in Python
    "importlib": ("__init__.py",),  # each public name is imported when it is first used, from a literal table
    "subprocess": ("after/verify.py",),  # verify-resume kills runs that it starts, which are fitkit itself
    "runpy": ("commands/common.py",),  # --code FILE, which the user gives on the command line
}
# Functions and classes, by their full names, and the only places that may name one: file and function.
NAMES = {
    **dict.fromkeys(("eval", "exec", "compile", "__import__", "breakpoint", "input", "globals", "locals", "vars"), ()),
    **dict.fromkeys(("torch.load", "torch.jit.load", "torch.export.load", "torch.classes.load_library"), ()),
    **dict.fromkeys(("torch.ops.load_library", "torch.serialization.load", "torch.save"), ()),
    **dict.fromkeys(("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load"), ()),
    **dict.fromkeys(
        ("yaml.unsafe_load_all", "yaml.FullLoader", "yaml.Loader", "yaml.UnsafeLoader", "yaml.CLoader"), ()
    ),
    **dict.fromkeys(("yaml.CFullLoader", "yaml.CUnsafeLoader", "yaml.YAMLObject", "yaml.add_constructor"), ()),
    **dict.fromkeys(("numpy.fromregex", "numpy.ctypeslib", "numpy.f2py", "numpy.genfromtxt", "numpy.memmap"), ()),
    **dict.fromkeys(("os.system", "os.popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.posix_spawnp"), ()),
    **dict.fromkeys(("os.startfile", "os.environ.get", "os.getenv", "os.path.expandvars", "string.Template"), ()),
    **dict.fromkeys((f"os.exec{end}" for end in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")), ()),
    **dict.fromkeys((f"os.spawn{end}" for end in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")), ()),
    **dict.fromkeys(("operator.attrgetter", "operator.methodcaller", "inspect.getattr_static"), ()),
    **dict.fromkeys(("types.CodeType", "types.FunctionType", "sys.settrace", "sys.setprofile", "tarfile.open"), ()),
}
NAMES |= {
    "os.environ.get": (  # of the user's own environment
        ("engine/store.py", "cache_folder"),
        ("engine/store.py", "private_torch_cache"),
        ("engine/devices.py", "can_compile"),
    ),
    "types.FunctionType": (("engine/updates.py", "_calls"),),  # see INSIDE
    "importlib.import_module": (("__init__.py", "__getattr__"),),  # of names that stand in the file itself
    "runpy.run_path": (("commands/common.py", "_run_code"),),
    "locals": (("parts/callback.py", "__init__"),),  # LambdaCallback, which takes functions and so is no table's
    "vars": (
        ("parts/callback.py", "__init_subclass__"),  # the names of a class that Python code defined
        ("parts/callback.py", "__init__"),
        ("engine/private.py", "_is_patched"),  # whether somebody put a function of their own on an optimizer
        ("engine/private.py", "attributes_of"),  # the plain values of a module, which are hashed
        ("engine/private.py", "changed"),  # whether somebody put a forward of their own on a module
        ("engine/capture.py", "_put_back"),  # what a module's own code wrote into itself
        ("engine/signature.py", "plain"),
        ("engine/private.py", "hooked_modules"),
    ),
    "globals": (("__init__.py", "__dir__"),),  # what completion shows
    "sys.modules": (("engine/seeds.py", "loaded_numpy"),),  # NumPy's generator, where NumPy is loaded
}
# getattr and setattr with a name that is not written out: where, of what, and why the name cannot come from a file.
NAMED = {
    ("__init__.py", "__getattr__", "name"): "a key of the literal table _WHERE",
    ("history.py", "to_json", "name"): "a key of the literal table _EXTRA",
    ("history.py", "from_json", "name"): "a key of the literal table _EXTRA",
    ("resume.py", "capture", "name"): "one of the literal COUNTERS",
    ("resume.py", "_restore", "name"): "one of the literal COUNTERS",
    ("engine/saved.py", "refuse_misfit", "name"): "one of the literal COUNTERS, handed over by resume.py",
    ("engine/private.py", "_step_hooks", "f'_optimizer_step_{when}_hooks'"): "two literal words",
    ("engine/private.py", "_step_hooks", "f'_global_optimizer_{when}_hooks'"): "two literal words",
    ("engine/loading.py", "*", "name"): "one of the literal KEPT",
    ("parts/callback.py", "state_dict", "name"): "`remembers` of a class, which is code",
    ("parts/callback.py", "load_state_dict", "name"): "`remembers` of a class, which is code",
    ("parts/callback.py", "overridden", "hook"): "one of the literal HOOKS of the trainer",
    ("parts/models.py", "mlp", "activation"): "one of the words of a Literal, which check and convert compare",
    ("parts/layers.py", "*", "name"): "one of a few literal words",
    ("after/plan.py", "__call__", "self.device.type"): "cuda or mps, of a device that torch has chosen",
    ("after/words.py", "torch_name", "entry.name"): "the name of a function that is in a table already",
}
PRIVATE = {"__globals__", "__code__", "__builtins__", "__subclasses__", "__bases__", "__reduce__", "__reduce_ex__"}
PRIVATE |= {"__closure__", "__loader__", "__spec__", "__dict__", "__setstate__", "f_globals", "f_locals", "gi_frame"}
INSIDE = {  # attributes from which all of Python can be reached: where, and of what
    ("engine/updates.py", "_calls"): "the step of an optimizer of torch, run with one of its functions replaced",
}
FORMATS = {  # `template.format(…)` of a text that is not written out there
    ("spec/check.py", "unknown_name"): "one of the literal texts of hints.SUFFIXES",
    ("spec/syntax.py", "*"): "one of the literal texts of that file",
    ("files.py", "why_not"): "one of the literal texts of RECIPES",
}


class Gate(ast.NodeVisitor):
    """Collects what a file does that it may not: `file` is its path from the package."""

    def __init__(self, file):
        self.file, self.faults, self.functions, self.parameters, self.known = file, [], [], [], {}

    def fault(self, node, text):
        self.faults.append(f"{self.file}:{node.lineno}: {text}")

    def within(self, allowed):
        return any(file == self.file and function in self.functions for file, function in allowed)

    def visit_FunctionDef(self, node):
        arguments = [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs]
        self.functions.append(node.name)
        self.parameters.append({argument.arg for argument in arguments})
        self.generic_visit(node)
        self.functions.pop()
        self.parameters.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Import(self, node):
        for alias in node.names:
            self.known[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )
            self.module(node, alias.name)

    def visit_ImportFrom(self, node):
        module = node.module or ""
        self.module(node, module)
        for alias in node.names:
            name = f"{module}.{alias.name}"
            self.known[alias.asname or alias.name] = name
            self.module(node, name)
            self.named(node, name)
            if alias.name == "*":
                self.fault(node, f"import * from {module}")

    def module(self, node, name):
        for banned, files in MODULES.items():
            if (name == banned or name.startswith(f"{banned}.")) and self.file not in files:
                self.fault(node, f"imports {name}")

    def full(self, node):
        """The full name behind a name or a chain of attributes, or nothing."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (inner := self.full(node.value)):
            return f"{inner}.{node.attr}"
        return None

    def named(self, node, name):
        name = name.replace("builtins.", "").replace("np.", "numpy.")
        if name in NAMES and not self.within(NAMES[name]):
            self.fault(node, f"names {name}")
        self.module(node, name) if "." in name else None

    def visit_Name(self, node):
        if node.id in PRIVATE:
            self.fault(node, f"names {node.id}")
        own = isinstance(node.ctx, ast.Store) or any(node.id in parameters for parameters in self.parameters)
        if not own:  # `compile` is the name of a key of ours, too
            self.named(node, self.full(node))

    def visit_Attribute(self, node):
        if name := self.full(node):
            self.named(node, name)
        if node.attr in PRIVATE and not self.within(INSIDE):
            self.fault(node, f"reads {node.attr}")
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, str) and node.value in PRIVATE:
            self.fault(node, f"names {node.value}")

    def visit_Call(self, node):
        name = self.full(node.func) or ""
        if name in ("getattr", "setattr", "delattr", "hasattr") and not isinstance(node.args[1], ast.Constant):
            what = ast.unparse(node.args[1])
            if not any((self.file, function, what) in NAMED for function in (*self.functions, "*")):
                self.fault(node, f"{name} of {what}, which is not written out")
        if name in ("numpy.load", "np.load") or (
            isinstance(node.func, ast.Attribute) and node.func.attr == "read_array"
        ):
            pickles = next((k.value for k in node.keywords if k.arg == "allow_pickle"), None)
            if not (isinstance(pickles, ast.Constant) and pickles.value is False):
                self.fault(node, "np.load without allow_pickle=False")
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "format_map"):
            if (
                not isinstance(node.func.value, ast.Constant)
                and not self.within(FORMATS)
                and (self.file, "*") not in FORMATS
            ):
                self.fault(node, "formats a text that is not written out")
        if any(k.arg == "shell" for k in node.keywords):
            self.fault(node, "runs a shell")
        self.generic_visit(node)


def faults(text, file="parts/some.py"):
    gate = Gate(file)
    gate.visit(ast.parse(text))
    return gate.faults


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_can_run_what_it_reads(path):
    assert faults(path.read_text("utf-8"), path.relative_to(PACKAGE).as_posix()) == []


SNIPPETS = [
    "import pickle",
    "import pickle as harmless",
    "from pickle import loads",
    "import marshal",
    "import dill",
    "import joblib",
    "import cloudpickle",
    "import shelve",
    "import socket",
    "import urllib.request",
    "from urllib import request",
    "import http.client",
    "import requests",
    "import subprocess",
    "import importlib",
    "from importlib import import_module as find",
    "import runpy",
    "import ctypes",
    "import multiprocessing",
    "def f(compile):\n    return eval(compile)",
    "import torch\ntorch.load(path)",
    "import torch\ntorch.load(path, weights_only=True)",
    "import torch as t\nt.load(path)",
    "from torch import load",
    "from torch import load as read",
    "from torch import hub",
    "import torch.hub",
    "import torch\ntorch.hub.load('a', 'b')",
    "import torch\ntorch.jit.load(path)",
    "import torch\nread = torch.load",
    "from torch.utils import cpp_extension",
    "import numpy as np\nnp.load(path)",
    "import numpy as np\nnp.load(path, allow_pickle=True)",
    "import numpy as np\nnp.load(path, allow_pickle=flag)",
    "import numpy\nnumpy.load(path, **options)",
    "def f(np, file):\n    return np.load(file)",
    "def f(np, file):\n    return np.lib.format.read_array(file)",
    "import yaml\nyaml.load(text, yaml.SafeLoader)",
    "import yaml\nyaml.load(text, Loader=yaml.FullLoader)",
    "from yaml import FullLoader as Safe",
    "from yaml import unsafe_load",
    "import yaml as y\ny.full_load(text)",
    "eval(text)",
    "run = eval",
    "exec(text)",
    "compile(text, 'a', 'exec')",
    "import builtins\nbuiltins.eval(text)",
    "__import__(name)",
    "__builtins__['eval'](text)",
    "import os\nos.system(text)",
    "from os import system as go",
    "import os\nos.popen(text)",
    "import os\nos.execv(path, [])",
    "import os\nos.posix_spawn(path, [], {})",
    "import os\nos.fork()",
    "import os\nos.getenv('HOME')",
    "import sys\nsys.modules[name]",
    "getattr(thing, name)",
    "getattr(thing, f'on_{name}')",
    "setattr(thing, name, value)",
    "import operator\noperator.attrgetter(name)(thing)",
    "f.__globals__['os']",
    "().__class__.__base__.__subclasses__()",
    "getattr(f, '__globals__')",
    "template.format(epoch=trainer)",
    "template.format_map(values)",
    "run(command, shell=True)",
    "from os import *",
    "globals()[name]()",
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_gate_notices(snippet):
    assert faults(snippet)


def test_what_is_allowed_is_still_there():
    """An exception that nothing needs any more is removed from the lists above."""
    needed = {file for files in MODULES.values() for file in files} | {file for file, *_ in (*NAMED, *FORMATS, *INSIDE)}
    needed |= {file for places in NAMES.values() for file, _ in places}
    assert [file for file in needed if not (PACKAGE / file).is_file()] == []
    for file, function, what in NAMED:
        calls = [
            node for node in ast.walk(ast.parse((PACKAGE / file).read_text("utf-8"))) if isinstance(node, ast.Call)
        ]
        named = {
            ast.unparse(call.args[1]) for call in calls if ast.unparse(call.func) in ("getattr", "setattr", "hasattr")
        }
        assert what in named, f"{file}: {function} asks for no attribute {what} any more"


def marks(table):
    for entry in TABLES[table].values():
        for argument in entry.arguments.values():
            for choice in options(argument.annotation):
                yield from ((entry.name, argument.name, mark) for mark in getattr(choice, "__metadata__", ()))


@pytest.mark.parametrize("table", ["models", "layers", "losses", "metrics"])
def test_nothing_that_the_card_of_a_weights_file_names_opens_a_file(table):
    """A card's paths would start anywhere: what is built from a card takes none."""
    assert [found for found in marks(table) if isinstance(found[2], InputPath | OutputPath)] == []


def test_an_argument_that_is_called_a_path_is_declared_as_one():
    for name, table in TABLES.items():
        for entry in table.values():
            for argument in entry.arguments.values():
                if set(argument.name.split("_")) & {"path", "file", "filepath", "filename", "dir", "folder"}:
                    found = [mark for e, a, mark in marks(name) if (e, a) == (entry.name, argument.name)]
                    assert any(isinstance(mark, InputPath | OutputPath) for mark in found), (
                        f"{entry.name}.{argument.name}"
                    )


def test_no_component_takes_code_or_a_device_of_a_spec():
    for table in TABLES.values():
        for entry in table.values():
            for argument in entry.arguments.values():
                assert argument.name not in ("device", "dtype", "params", "defaults", "generator"), entry.name
                assert typing.get_origin(argument.annotation) is not type, f"{entry.name}.{argument.name}"
