"""Find a learning rate: train some steps while it grows, and see where the loss falls."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fitkit.commands.common import add_code, add_spec, load_spec
from fitkit.errors import Fault, Place, SpecError, listing, show

FORMATS = ("png", "svg", "pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_spec(parser, "fit.batch_size=512")
    parser.add_argument("--start", metavar="LR", type=float, default=1e-7, help="lowest learning rate (1e-7)")
    parser.add_argument("--end", metavar="LR", type=float, default=10.0, help="highest learning rate (10)")
    parser.add_argument("--steps", metavar="N", type=int, help="default: one epoch's, but at least 200, at most 500")
    parser.add_argument("--plot", metavar="FILE", help="draw the curve into a .png, .svg or .pdf file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    plot = _writable(Path(arguments.plot)) if arguments.plot else None
    load_spec(arguments)  # tells mistakes of YAML before torch is imported, and runs --code
    from fitkit import figures
    from fitkit.after.lr_find import lr_find

    if plot is not None:
        figures.blank(1, 1)  # before the sweep it is known whether it can be drawn
    sweep = {"start": arguments.start, "end": arguments.end, "steps": arguments.steps}
    found = lr_find(Path(arguments.spec), overrides=arguments.overrides, **sweep)
    if plot is not None:
        try:
            found.plot(plot)
        except OSError as error:
            raise _refused(plot, f"cannot be written: {error.strerror}.") from None
    print(json.dumps(found.to_json(), allow_nan=False) if arguments.json else found)
    return 0


def _writable(path: Path) -> Path:
    if path.suffix.removeprefix(".").lower() not in FORMATS:
        raise _refused(path, f"a plot is one of {listing(f'.{name}' for name in FORMATS)}.")
    if path.exists() or path.is_symlink():
        raise _refused(path, "is there already; nothing is overwritten. Choose another name.")
    if not path.parent.is_dir():
        raise _refused(path, f"there is no folder {show(str(path.parent))}. Make it first.")
    return path


def _refused(path: Path, message: str) -> SpecError:
    return SpecError(Fault(message, place=Place(f"--plot {path}")))
