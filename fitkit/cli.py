"""The command line. Exit codes: 0 done; 2 a mistake found before training; 3 training failed; 4 weights could not be
written or read; 130 and 143 stopped by a signal.

Nothing here imports torch until a command needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fitkit import __version__
from fitkit.errors import Fault, FitkitError, Place, SpecError, listing, nearest, printable, show
from fitkit.files import why_not
from fitkit.spec import compose

EPILOG = "A spec is a YAML file: see `fitkit init DATA` for a first one, and `fitkit list` for what it may say."


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser("fitkit", description="Train PyTorch models from one YAML file.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"fitkit {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, function: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(run=function)
        return made

    _add_training(command)
    _add_others(command)
    return top


Command = Callable[[str, str, Any], argparse.ArgumentParser]


def _add_code(command: argparse.ArgumentParser) -> None:
    help = "Python file that registers parts"
    command.add_argument("--code", metavar="FILE", action="append", default=[], help=help)


def _add_training(command: Command) -> None:
    for name, text, function in (
        ("fit", "train what a spec declares", _fit),
        ("check", "find every mistake in a spec, without training", _check),
    ):
        made = command(name, text, function)
        made.add_argument("spec", metavar="SPEC", help="path of the YAML file")
        made.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="e.g. optimizer.AdamW.lr=1e-2 fit.epochs=3")
        _add_code(made)
        made.add_argument("--quiet", action="store_true", help="print only warnings, errors and the run folder")
        if name == "fit":
            made.add_argument("--out", metavar="DIR", help="run folder (default: runs/<name>, then -2, -3, …)")
            made.add_argument("--resume", action="store_true", help="go on with the run in --out where it was killed")
            made.add_argument(
                "--allow-change", metavar="KEY", action="append", default=[], help="resume although this key differs"
            )
            made.add_argument(
                "--checkpoint-every", metavar="N", help='"100 steps" or "30 s" (default: at most 3 %% of the time)'
            )
            made.add_argument("--json", action="store_true", help="one JSON object an epoch on standard output")
    planned = command("plan", "say what a run will need: parameters, memory, steps and time", _plan)
    planned.add_argument("spec", metavar="SPEC", help="path of the YAML file")
    planned.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="e.g. fit.batch_size=512")
    _add_code(planned)
    planned.add_argument("--json", action="store_true", help="print one JSON object; bytes and seconds")
    verify = command("verify-resume", "kill a run at random moments and prove that its resume changes no bit", _verify)
    verify.add_argument("spec", metavar="SPEC", help="path of the YAML file")
    verify.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="e.g. fit.epochs=3")
    verify.add_argument("--kills", type=int, default=5, metavar="N", help="how many kills (default: 5)")
    verify.add_argument("--seed", type=int, default=0, metavar="N", help="of the random moments (default: 0)")
    verify.add_argument("--checkpoint-every", metavar="N", default="5 steps", help='default: "5 steps"')


def _add_others(command: Command) -> None:
    listing = command("list", "list the names that a spec may use", _list)
    listing.add_argument("table", metavar="TABLE", nargs="?", help="optimizers, losses, layers, …")
    explain = command("explain", "explain a name or a key of a spec", _explain)
    explain.add_argument("name", metavar="NAME", help="AdamW, cross_entropy, fit, …")
    command("schema", "print the JSON Schema of a spec, for editors", _schema)
    init = command("init", "write a commented starter spec for some data", _init)
    init.add_argument("data", metavar="DATA", help="a .csv, .npy, .npz, .safetensors or .txt file, or a bundled set")
    init.add_argument("--target", metavar="COLUMN", help="the column to predict (default: the last)")
    init.add_argument("--out", metavar="FILE", help="where to write (default: <name of the data>.yaml here)")
    evaluate = command("evaluate", "measure a finished run on one of its splits, or on other data", _evaluate)
    evaluate.add_argument("run_folder", metavar="RUN")
    evaluate.add_argument("data", metavar="DATA", nargs="?", help="a file like the one that was trained on")
    evaluate.add_argument("--split", choices=("train", "val", "test"), default=None, help="default: val")
    evaluate.add_argument("--root", metavar="DIR", help="where the paths of the run's data start (default: here)")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    cache = command("cache", "list or clear the compiled steps that are kept for the next run", _cache)
    cache.add_argument("action", choices=("list", "clear"))
    predict = command("predict", "predict with a finished run", _predict)
    predict.add_argument("run_folder", metavar="RUN")
    predict.add_argument("data", metavar="DATA", help="a .csv, .npy, .npz or .safetensors file")
    predict.add_argument("--out", metavar="FILE", required=True, help="the CSV file to write")
    for made in (listing, explain, evaluate, predict):
        _add_code(made)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parse(argv)
    warnings.showwarning = lambda message, *_: print(f"warning: {printable(str(message))}", file=sys.stderr)
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch works without it, and so does fitkit
    stopped = signal.SIGINT

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = signal.Signals(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return int(arguments.run(arguments) or 0)
    except FitkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        hint = getattr(error, "hint", "")
        print(f"stopped.{hint}", file=sys.stderr)
        return 128 + int(getattr(error, "signal", stopped))
    except BrokenPipeError:  # the reader of our output went away, as `fitkit list | head` does
        sys.stderr.close()
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; overrides may stand behind options too, which argparse does not see by itself."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(arguments, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Hold Python's collector while modules are imported: it would take a quarter of the time, and find nothing."""
    gc.disable()
    try:
        yield
    finally:
        _freeze()
        gc.enable()


@functools.cache  # once
def _freeze() -> None:
    """Have the collector leave out what torch made, which stays: else it looks through it again and again."""
    gc.freeze()


def _load(arguments: argparse.Namespace) -> Any:
    """Read the spec before torch is imported, so that mistakes of YAML itself are told at once; then check it."""
    tree = compose.read(Path(arguments.spec), arguments.overrides)
    _run_codes(arguments)
    with _importing():
        from fitkit.builder import check_tree
        from fitkit.engine.private import load_compiler

    spec = check_tree(tree, Path(arguments.spec), bool(arguments.overrides))
    with _importing():
        load_compiler()
    return spec


def _run_codes(arguments: argparse.Namespace) -> None:
    for file in arguments.code:
        _run_code(file)


def _run_code(file: str) -> None:
    import runpy

    if not Path(file).is_file():
        raise SpecError(Fault("there is no such file.", place=Place(f"--code {file}")))
    try:
        runpy.run_path(file)
    except Exception as error:  # whatever the user's own code raises is theirs to see, with its place
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == file), None)
        said = str(error)
        if isinstance(error, SyntaxError) and error.filename == file:
            line, said = error.lineno, error.msg
        place = Place(f"--code {file}" + (f":{line}" if line else ""))
        raise SpecError(Fault(f"{type(error).__name__}: {said}.", place=place)) from error


def _run_folder(name: str) -> Path:
    folder = Path(name)
    if reason := why_not(name):
        raise SpecError(Fault(f"a run is a folder. {reason}", place=Place(name)))
    if not folder.is_dir():
        runs = [str(run) for run in sorted(Path("runs").glob("*")) if run.is_dir()]
        near = nearest(name, runs)
        hint = f" Did you mean {show(near)}?" if near else f" Here are {listing(runs)}." if runs else ""
        raise SpecError(Fault(f"there is no such run folder.{hint}", place=Place(name)))
    return folder


def _fit(arguments: argparse.Namespace) -> int:
    spec = _load(arguments)
    with _importing():
        from fitkit import run_folder
        from fitkit.engine.signals import Interrupted
        from fitkit.progress import Lines
        from fitkit.session import run

    if arguments.resume and not arguments.out:
        raise SpecError("--resume needs the run folder: give --out DIR.")
    if arguments.out and Path(arguments.out).is_file():
        message = "this is a file. Name a folder that is not there yet, or is empty."
        raise SpecError(Fault(message, place=Place(f"--out {arguments.out}")))
    out = Path(arguments.out) if arguments.out else run_folder.fresh(spec.name)
    lines = Lines(as_json=arguments.json, quiet=arguments.quiet)
    command = "fitkit " + " ".join(sys.argv[1:])
    every_steps, every_seconds = _interval(arguments.checkpoint_every)
    try:
        history, trainer = run(
            spec,
            out=out,
            resume=arguments.resume,
            allow_change=arguments.allow_change,
            callbacks=(lines,),
            command=command,
            every_steps=every_steps,
            every_seconds=every_seconds,
        )
    except Interrupted as error:
        error.hint = f" Go on with: fitkit fit {arguments.spec} --out {out} --resume, and the same KEY=VALUE."
        raise
    if trainer is None:
        print(f"{out}: this run is finished; nothing was done.", file=sys.stderr)
    lines.say_end(history, out)
    return 0


def _interval(text: str | None) -> tuple[int | None, float | None]:
    """Return the steps or the seconds between two checkpoints: "100" or "100 steps", "30s" or "0.5 s"."""
    if text is None:
        return None, None
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(steps?|s|)\s*", text)
    number = float(match[1]) if match else 0.0
    if match is None or number <= 0 or (match[2] != "s" and number != int(number)):
        raise SpecError(Fault('expects "100 steps" or "30 s".', place=Place(f"--checkpoint-every {text}")))
    return (None, number) if match[2] == "s" else (int(number), None)


def _check(arguments: argparse.Namespace) -> int:
    spec = _load(arguments)
    from fitkit import run_folder
    from fitkit.builder import assemble

    trainer, _ = assemble(spec, None, None, run_folder.fresh(spec.name))
    if not arguments.quiet:
        print(printable(f"{arguments.spec}: no mistakes found.\n{trainer}"))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    spec = _load(arguments)
    import dataclasses

    from fitkit.after.plan import plan

    found = plan(spec)
    print(json.dumps(dataclasses.asdict(found)) if arguments.json else printable(str(found)))
    return 0 if found.fits else 2


def _verify(arguments: argparse.Namespace) -> None:
    compose.read(Path(arguments.spec), arguments.overrides)
    _interval(arguments.checkpoint_every)
    from fitkit.after.verify import verify_resume

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    every = arguments.checkpoint_every
    print(verify_resume(Path(arguments.spec), arguments.overrides, arguments.kills, arguments.seed, say, every))


def _list(arguments: argparse.Namespace) -> None:
    _run_codes(arguments)
    from fitkit.after.describe import list_table, list_tables

    print(list_table(arguments.table) if arguments.table else list_tables())


def _explain(arguments: argparse.Namespace) -> None:
    _run_codes(arguments)
    from fitkit.after.describe import explain

    print(explain(arguments.name))


def _schema(arguments: argparse.Namespace) -> None:
    from fitkit.after.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


def _init(arguments: argparse.Namespace) -> None:
    from fitkit.after.starter import starter

    out = Path(arguments.out or f"{Path(arguments.data).stem}.yaml")
    if out.exists():
        raise SpecError(Fault("is there already. Give another name with --out FILE.", place=Place(str(out))))
    text = starter(Path(arguments.data), arguments.target, out.absolute().parent)
    with out.open("x", encoding="utf-8") as file:  # "x": a link that leads nowhere yet is not followed
        file.write(text)
    print(f"wrote {out}. Next: fitkit fit {out}")


def _evaluate(arguments: argparse.Namespace) -> None:
    folder = _run_folder(arguments.run_folder)
    _run_codes(arguments)
    with _importing():
        from fitkit.after.evaluate import evaluate_file, evaluate_split

    if arguments.data:
        if arguments.split:
            raise SpecError("give either DATA or --split, not both.")
        values, looks = evaluate_file(folder, Path(arguments.data)), 0
    else:
        root = Path(arguments.root) if arguments.root else None
        values, looks = evaluate_split(folder, arguments.split or "val", root)
    what = arguments.data or arguments.split or "val"
    if arguments.json:
        print(json.dumps({key: value if value == value else None for key, value in values.items()}))
    else:
        print(f"{what}: " + ", ".join(f"{name} {value:.6g}" for name, value in values.items()))
    if looks:
        times = "for the first time" if looks == 1 else f"{looks} times now; each look makes it less of a test"
        print(f"the test split of {folder} was looked at {times}.", file=sys.stderr)


def _predict(arguments: argparse.Namespace) -> None:
    folder, out = _run_folder(arguments.run_folder), Path(arguments.out)
    if not out.parent.is_dir():
        message = f"there is no folder {show(str(out.parent))}. Make it first."
        raise SpecError(Fault(message, place=Place(f"--out {out}")))
    _run_codes(arguments)
    with _importing():
        from fitkit.after.predict import predict_file

    count = predict_file(folder, Path(arguments.data), out)
    print(f"wrote {count:,} predictions to {arguments.out}")


def _cache(arguments: argparse.Namespace) -> None:
    from fitkit.engine.store import cache_folder, entries

    found = entries()
    size = sum(size for _, size, _ in found) / 1e6
    if arguments.action == "clear":
        for path, *_ in found:
            path.unlink(missing_ok=True)
        print(f"removed {len(found)} compiled steps, {size:.1f} MB, from {cache_folder()}")
        return
    for path, own, used in found:
        print(f"{path.name[:16]}  {own / 1e6:6.2f} MB  used {time.strftime('%Y-%m-%d %H:%M', time.localtime(used))}")
    print(f"{len(found)} compiled steps, {size:.1f} MB, in {cache_folder()}")


if __name__ == "__main__":
    sys.exit(main())
