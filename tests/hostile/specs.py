"""Hostile specs: each is one attack that somebody could put into a YAML file and send to a stranger.

A case is a name and the files that it puts into an empty folder beside `data.csv`, which is harmless. Outside of that
folder lies `../outside/secret.csv`, and whatever text a case may reach there must never be printed.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import SPEC, Case, bomb

WAYS = ("load_spec", "check", "fit", "resume")
MUST = ("check", "fit", "resume")  # what says no at the latest; load_spec reads no data
DATA = "data: {csv: {path: data.csv}}\n"
MODEL = "model: {mlp: [4]}\n"
FIT = "fit: {epochs: 1, batch_size: 16, device: cpu}\n"


def changed(line: str) -> str:
    """Return the harmless spec with one section written otherwise."""
    key = line.partition(":")[0]
    return "".join(kept for kept in SPEC.splitlines(keepends=True) if kept.partition(":")[0] != key) + line + "\n"


def spec(name: str, text: str | bytes, setup: Callable[[Path], Any] | None = None) -> Case:
    """Return a case whose spec.yaml is exactly this text."""

    def make(box: Path) -> None:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        (box / "spec.yaml").write_bytes(raw)
        if setup:
            setup(box)

    return Case(name, make, WAYS, MUST)


def line(name: str, text: str, setup: Callable[[Path], Any] | None = None) -> Case:
    """Return a case that changes one section of a harmless spec."""
    return spec(name, changed(text), setup)


def link(name: str, target: str) -> Callable[[Path], Any]:
    """Return what puts a symbolic link into the folder."""
    return lambda box: (box / name).symlink_to(target)


def file(name: str, text: str | bytes) -> Callable[[Path], Any]:
    """Return what puts a file into the folder."""
    return lambda box: (box / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def fifo(name: str) -> Callable[[Path], Any]:
    """Return what puts a pipe that nobody writes to into the folder."""
    return lambda box: ((box / name).unlink(missing_ok=True), os.mkfifo(box / name))


def chain(box: Path) -> None:
    """Write forty specs that extend one another."""
    for i in range(40):
        (box / f"base{i}.yaml").write_text(f"extends: base{i + 1}.yaml\n")
    (box / "base40.yaml").write_text(SPEC)


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'lol'}]\n" for i in range(12))
SYSTEM = "os.system ['touch pwned']"

TAGS = [
    spec("a tag that applies a function", SPEC + "seed: !!python/object/apply:os.system ['touch pwned']\n"),
    spec("a tag that makes an object", SPEC + "seed: !!python/object/new:subprocess.Popen [[touch, pwned]]\n"),
    spec("a tag with a state to set", SPEC + "seed: !!python/object:os._wrap_close {x: 1}\n"),
    spec("a tag that names a function", SPEC + "seed: !!python/name:os.system\n"),
    spec("a tag that imports a module", SPEC + "seed: !!python/module:this\n"),
    spec("a verbatim tag", SPEC + "seed: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch pwned']\n"),
    spec("a tag behind a directive", "%TAG !e! tag:yaml.org,2002:python/object/apply:\n---\nseed: !e!os.system [x]\n"),
    spec("a tag on the whole document", "--- !!python/object/apply:os.system ['touch pwned']\n"),
    spec("a tag on a key", SPEC + "!!python/name:os.system x: 1\n"),
    spec("a tag of one's own", SPEC + "seed: !env HOME\n"),
    spec("a binary tag", SPEC + "seed: !!binary aW1wb3J0IG9z\n"),
    spec("a tag that opens a file", SPEC + "seed: !include ../outside/secret.csv\n"),
    spec(
        "a tag in a base", "extends: base.yaml\n", file("base.yaml", SPEC + f"seed: !!python/object/apply:{SYSTEM}\n")
    ),
]
ALIASES = [
    spec("a billion laughs", LAUGHS + SPEC),
    spec("an alias of itself", "model: &m [*m]\n" + DATA),
    spec("an anchor", changed("model: &m {mlp: [4]}")),
    spec("an alias as a key", "&a name: x\n*a : y\n"),
    spec("a merge key", SPEC + "<<: {seed: 1}\n"),
    spec("an alias of nothing", SPEC + "seed: *nothing\n"),
]
SIZES = [
    spec("ten thousand levels of lists", "model: " + "[" * 10_000 + "]" * 10_000 + "\n"),
    spec("ten thousand levels of mappings", "model: " + "{a: " * 10_000 + "}" * 10_000 + "\n"),
    spec("two hundred levels of blocks", "".join(" " * i + "a:\n" for i in range(200))),
    spec("five thousand hyphens", "- " * 5000 + "a\n"),
    spec("two MiB of a comment", SPEC + "#" * (2 << 20) + "\n"),
    spec("one MiB of commas", "model: [" + "," * ((1 << 20) - 100)),
    spec("one MiB of open quotes", "model: " + '["' * ((1 << 19) - 100)),
    spec("one MiB of question marks", "? " * ((1 << 19) - 100)),
    spec("one MiB of blanks", SPEC + "seed:" + " " * ((1 << 20) - 1000) + "x"),
    spec("one MiB of line breaks in a quote", SPEC + 'seed: "' + "\n" * ((1 << 20) - 1000) + '"'),
    spec("half a MiB as one key", "a" * (1 << 19) + ": 1\n"),
    spec("half a MiB as one name", changed("model: " + "a" * (1 << 19))),
    spec("ten thousand keys", "".join(f"k{i}: 1\n" for i in range(10_001))),
    spec("five thousand unknown layers", changed("model: [" + "Lineer, " * 4900 + "]")),
    spec("twenty thousand documents", "--- a\n" * 20_000),
    spec("three hundred thousand digits", changed("seed: " + "9" * 300_000)),
    spec("a version of ten thousand digits", f"%YAML 1.{'9' * 10_000}\n---\n" + SPEC),
    spec("a million hexadecimal digits", changed("seed: 0x" + "f" * 500_000)),
]
BYTES = [
    spec("a null byte", SPEC.encode() + b"seed: \0\n"),
    spec("no UTF-8", SPEC.encode() + b"name: \xff\xfe\xfd\n"),
    spec("UTF-16 with a byte order mark", SPEC.encode("utf-16")),
    spec("an escape beyond Unicode", SPEC + 'seed: "\\UFFFFFFFF"\n'),
    spec("half a surrogate pair", SPEC + 'name: "\\ud83d"\n'),
    spec("a pickle under the name of a spec", pickle.dumps(bomb())),
    spec("two documents", SPEC + "---\n" + SPEC),
    spec("a file that is a pipe", "", fifo("spec.yaml")),
    Case("a spec that is a folder", lambda box: (box / "spec.yaml").mkdir(), WAYS, WAYS),
    Case("a spec that is a device", link("spec.yaml", "/dev/zero"), WAYS, WAYS),
    Case("a spec without an end", lambda box: os.truncate(_made(box / "spec.yaml"), 1 << 40), WAYS, WAYS),
]


def _made(path: Path) -> Path:
    path.touch()
    return path


NAMES = [
    line("a dotted path to os.system", "model: {os.system: 'touch pwned'}"),
    line("a dotted path to torch.hub.load", "model: {torch.hub.load: {repo_or_dir: a/b, model: c}}"),
    line("a dotted path to torch.load", "loss: {torch.load: data.csv}"),
    line("a dotted path into fitkit", "callbacks: [fitkit.cli._run_code]"),
    line("a path through a registered name", "loss: cross_entropy.__globals__"),
    line("a path in brackets", "loss: cross_entropy[__globals__]"),
    line("a dunder name", "model: [__import__, Linear]"),
    line("a class of everything", "model: [__class__, object, type]"),
    line("a builtin", "metrics: [eval, exec, open]"),
    line("an entry point", "optimizer: 'fitkit.cli:main'"),
    line("_target_, as Hydra has it", "model: {_target_: os.system, _args_: ['touch pwned']}"),
    line("class_path, as Lightning has it", "model: {class_path: os.system, init_args: {command: touch pwned}}"),
    line("_class_path below a class that is allowed", "model: {mlp: {hidden: [4], _class_path: os.system}}"),
    line("module and class, as Keras has it", "model: {module: builtins, class_name: exec, config: {x: 1}}"),
    line("a Lambda layer with code", 'model: [{Lambda: {function: \'lambda x: __import__("os").system("x")\'}}]'),
    line("a LambdaCallback with code", "callbacks: {LambdaCallback: {on_epoch_end: \"__import__('os')\"}}"),
    line("torch.nn's base class", "model: [Module, ModuleList, Sequential]"),
    line("an argument that is private", "model: [{Linear: {out_features: outputs, __class__: x}}]"),
    line("an argument that torch has and a spec has not", "model: [{Linear: {out_features: outputs, device: meta}}]"),
    line("an argument with two stars", 'optimizer: {AdamW: {"**kwargs": 1}}'),
    line("a switch for the safety", "safe_mode: false"),
    line("a switch for remote code", "trust_remote_code: true"),
    line("a key that imports", "imports: [this]"),
    line("a key with code", "code: parts.py", file("parts.py", "open('pwned', 'w')\n")),
    line("a plug-in", "plugins: [parts.py]", file("parts.py", "open('pwned', 'w')\n")),
    line("a look-alike of AdamW in Greek", "optimizer: ΑdamW"),
    line("a name in full-width letters", "optimizer: ＡｄａｍＷ"),
    line("a name with a space of no width", "optimizer: Adam\u200bW"),
    line("a name that turns the writing around", 'optimizer: "\\u202eWmadA"'),
    line("a name that rings and titles the terminal", 'optimizer: "\\e]0;pwned\\a\\e[2J"'),
    line("a key that clears the screen", '"\\e[2J\\e[1;1H": 1'),
    line("a key with a line break", '"a\\nfitkit: all is well": 1'),
    line("an argument that clears the screen", 'optimizer: {AdamW: {"\\e[2J": 1}}'),
    line("a value that clears the screen", 'optimizer: {AdamW: {lr: "\\e[2J"}}'),
    line("a metric with a line break", 'metrics: ["accuracy\\nexit code 0"]'),
]
RUN_NAMES = [
    line("a run name that climbs", "name: ../../outside/run"),
    line("a run name that is absolute", "name: /tmp/pwned-by-fitkit"),
    line("a run name with a slash", "name: a/b"),
    line("a run name with a backslash", 'name: "..\\\\outside"'),
    line("a hidden run name", "name: .ssh"),
    line("a run name with a null byte", 'name: "a\\0b"'),
    line("a run name from the environment", "name: ${HOME}"),
    line("a run name from a shell", "name: $(touch pwned)"),
    line("a run name of a thousand letters", "name: " + "a" * 1000),
    line("a run name that is a mapping", "name: {a: 1}"),
    line("a run name with a line break", 'name: "run\\n"'),
]
SECRET = "../outside/secret.csv"
PATHS = [
    line("a path that climbs", f"data: {{csv: {{path: {SECRET}}}}}"),
    line("a path that climbs from within", f"data: {{csv: {{path: ./x/../{SECRET}}}}}"),
    line("an absolute path", "data: {csv: {path: /etc/passwd}}"),
    line("a path of the home folder", "data: {csv: {path: ~/.bashrc}}"),
    line("a path of the environment", "data: {csv: {path: $HOME/.bashrc}}"),
    line("a path to interpolate", "data: {csv: {path: '${oc.env:HOME}/.bashrc'}}"),
    line("a file URL", "data: {csv: {path: 'file:///etc/passwd'}}"),
    line("an address", "data: {csv: {path: 'http://169.254.169.254/latest/meta-data'}}"),
    line("an address of a bucket", "data: {csv: 's3://bucket/key.csv'}"),
    line("an address as a source", "data: https://example.com/data.csv"),
    line("a path of another machine", "data: {csv: {path: '\\\\host\\share\\x.csv'}}"),
    line("a path with a null byte", 'data: {csv: {path: "data.csv\\0.png"}}'),
    line("a path with a line break", 'data: {csv: {path: "no\\nsuch.csv"}}'),
    line("a path of five thousand letters", "data: {csv: {path: " + "a" * 5000 + "}}"),
    line("a path that is a list", "data: {csv: {path: [data.csv, /etc/passwd]}}"),
    line("the second path", f"data: {{npy: {{x: x.npy, y: {SECRET}}}}}"),
    line("a link that leads out", "data: {csv: {path: link.csv}}", link("link.csv", SECRET)),
    line("a folder that leads out", "data: {csv: {path: out/secret.csv}}", link("out", "../outside")),
    line("a link that leads nowhere", "data: {csv: {path: link.csv}}", link("link.csv", "nowhere")),
    line("a link to itself", "data: {csv: {path: link.csv}}", link("link.csv", "link.csv")),
    line("a link to a device", "data: {text: {path: link.txt}}", link("link.txt", "/dev/zero")),
    line("a link to the environment", "data: {text: {path: link.txt}}", link("link.txt", "/proc/self/environ")),
    line("a folder as data", "data: {csv: {path: .}}"),
    line("a pipe as data", "data: {csv: {path: pipe.csv}}", fifo("pipe.csv")),
    line("a pipe as arrays", "data: {npz: {path: pipe.npz}}", fifo("pipe.npz")),
    line("a pipe as tensors", "data: {safetensors: {path: pipe.safetensors}}", fifo("pipe.safetensors")),
    line("a pickle as data", "data: {npz: {path: data.pkl}}", file("data.pkl", pickle.dumps(bomb()))),
    line("a checkpoint of torch as data", "data: {npz: {path: data.pt}}", file("data.pt", pickle.dumps(bomb()))),
    line("a bare file name of torch", "data: model.ckpt", file("model.ckpt", pickle.dumps(bomb()))),
]
EXTENDS = [
    spec("a base that climbs", "extends: ../outside/base.yaml\n"),
    spec("a base that is absolute", "extends: /etc/passwd\n"),
    spec("a base at an address", "extends: https://example.com/base.yaml\n"),
    spec("a base at a file URL", "extends: file:///etc/passwd\n"),
    spec("a base of the environment", "extends: ${HOME}/base.yaml\n"),
    spec("a base that is a link to outside", "extends: base.yaml\n", link("base.yaml", SECRET)),
    spec("a base that extends itself", "extends: spec.yaml\n"),
    spec("two bases in a circle", "extends: base.yaml\n", file("base.yaml", "extends: spec.yaml\n")),
    spec("a circle through a link", "extends: base.yaml\n", link("base.yaml", "spec.yaml")),
    spec("forty bases", "extends: base0.yaml\n", chain),
    spec("bases in a list", "extends: [base.yaml, /etc/passwd]\n"),
    spec("a base with a null byte", 'extends: "base.yaml\\0"\n'),
    spec("a base that is a pipe", "extends: pipe.yaml\n", fifo("pipe.yaml")),
    spec("a base that is a folder", "extends: .\n"),
    spec("a base that is a device", "extends: zero.yaml\n", link("zero.yaml", "/dev/zero")),
    spec(
        "a base whose path leaves the folder",
        "extends: base.yaml\n",
        file("base.yaml", changed(f"data: {{csv: {{path: {SECRET}}}}}")),
    ),
]


def written(name: str, path: str, callback: str = "ModelCheckpoint", argument: str = "filepath") -> Case:
    """Return a case that makes a callback write to a path."""
    return line(name, f"callbacks: {{{callback}: {{{argument}: {path}}}}}")


WRITES = [
    written("weights that climb", "../../outside/x.safetensors"),
    written("weights at an absolute path", "/tmp/pwned-by-fitkit.safetensors"),
    written("weights that climb from within", "weights/../../x.safetensors"),
    written("weights over the run's own", "model.safetensors"),
    written("weights among the checkpoints", "checkpoints/step-1/model.safetensors"),
    written("a format that walks attributes", '"{epoch.__class__}.safetensors"'),
    written("a format that walks to everything", '"{epoch.__class__.__mro__[1].__subclasses__}.safetensors"'),
    written("a format with an index", '"{0}.safetensors"'),
    written("a format with a conversion", '"{val_loss!r}.safetensors"'),
    written("a format of a gigabyte", '"{epoch:999999999d}.safetensors"'),
    written("a format with a format in it", '"{val_loss:.{epoch}f}.safetensors"'),
    written("a format of a private column", '"{__class__}.safetensors"'),
    written("weights with a null byte", '"a\\0.safetensors"'),
    written("weights that clear the screen", '"\\e[2J.safetensors"'),
    written("weights that end in .py", "sitecustomize.py"),
    written("a log that climbs", "../../outside/log.csv", "CSVLogger", "filename"),
    written("a log over the spec", "spec.yaml", "CSVLogger", "filename"),
    written("a log over the spec by way of a dot", "./spec.yaml", "CSVLogger", "filename"),
    written("a log that is the folder", ".", "CSVLogger", "filename"),
    written("a log in the home folder", "/root/.bashrc", "CSVLogger", "filename"),
    written("a tracker that climbs", "../../outside", "TensorBoard", "log_dir"),
]


def windows(box: Path) -> None:
    """Let the spec read a text, which a model of sequences takes."""
    text = (box / "spec.yaml").read_text().replace("csv: {path: data.csv}", "text: {path: data.csv, length: 8}")
    (box / "spec.yaml").write_text(text.replace("{random: {val: 0.25, test: 0.25}}", "time"))


NUMBERS = [
    line("a billion layers", "model: {mlp: [" + "1, " * 9_900 + "1000000000]}"),
    line("a layer of a billion", "model: [{Linear: 1000000000}, {Linear: outputs}]"),
    line("a layer of 2^62", "model: {mlp: [4611686018427387904]}"),
    line("two layers of a million", "model: {mlp: [1000000, 1000000]}"),
    line("a kernel of a billion", "model: {cnn: [1000000000]}"),
    line("a transformer of a billion blocks", "model: {gpt: {depth: 1000000000}}", windows),
    line("an LSTM of a billion layers", "model: {lstm: {depth: 1000000000}}", windows),
    line("a layer of a billion layers", "model: [{LSTM: {hidden_size: 2, num_layers: 1000000000}}]", windows),
    line("ten thousand layers without weights", "model: [" + "ReLU, " * 9900 + "{Linear: outputs}]"),
    line("10^15 drawn samples", "data: {synthetic: {samples: 1000000000000000}}"),
    line("10^9 drawn features", "data: {synthetic: {samples: 1000000, features: 1000000000}}"),
    line("a teacher of 10^9", "data: {synthetic: {hidden: 1000000000}}"),
    line("1e400 as a learning rate", "optimizer: {AdamW: {lr: 1e400}}"),
    line("infinity as a learning rate", "optimizer: {AdamW: {lr: .inf}}"),
    line("NaN as a learning rate", "optimizer: {AdamW: {lr: .nan}}"),
    line("a number beyond 64 bits", "seed: 99999999999999999999"),
    line("a negative size", "model: {mlp: [-4]}"),
    line("an epoch count with an exponent", "fit: {epochs: 1e9}"),
    line("a batch beyond 64 bits", "fit: {batch_size: 18446744073709551616}"),
    line("a billion workers", "fit: {workers: 1000000000000000000000}"),
    line("a dropout above one", "model: {mlp: {hidden: [4], dropout: 1e308}}"),
    line("a window of 10^18", "data: {text: {path: data.csv, length: 1000000000000000000}}"),
    line("expression as a number", "optimizer: {AdamW: {lr: \"__import__('os').system('touch pwned')\"}}"),
    line("a number to interpolate", "optimizer: {AdamW: {lr: '${oc.decode:1}'}}"),
    line("a template as a number", "optimizer: {AdamW: {lr: '{{ 7*7 }}'}}"),
    line("a device that is a command", "fit: {device: 'cpu; touch pwned'}"),
    line("a device without memory", "fit: {device: meta}"),
    line("a device of 10^30", "fit: {device: 'cuda:1000000000000000000000000000000'}"),
    line("a compiler by name", "fit: {compile: 'touch pwned'}"),
    line("a precision by path", "fit: {precision: torch.load}"),
    line("a delimiter with a null byte", 'data: {csv: {path: data.csv, delimiter: "\\0\\0"}}'),
    line("a column that is an attribute", "data: {csv: {path: data.csv, target: __class__}}"),
    line("a column that clears the screen", 'data: {csv: {path: data.csv, target: "\\e[2J"}}'),
    line("a monitor that is an attribute", "callbacks: {EarlyStopping: {monitor: __class__}}"),
]

SPECS: list[Case] = [*TAGS, *ALIASES, *SIZES, *BYTES, *NAMES, *RUN_NAMES, *PATHS, *EXTENDS, *WRITES, *NUMBERS]
