"""List or clear the compiled steps that are kept for the next run."""

from __future__ import annotations

import argparse
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("action", choices=("list", "clear"))


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    from fitkit.engine.store import cache_folder, clear, entries

    if arguments.action == "clear":
        count, removed = clear()
        print(f"removed {count} compiled steps and torch's own files, {removed / 1e6:.1f} MB, from {cache_folder()}")
        return 0
    found = entries()
    size = sum(size for _, size, _ in found) / 1e6
    for path, own, used in found:
        print(f"{path.name[:16]}  {own / 1e6:6.2f} MB  used {time.strftime('%Y-%m-%d %H:%M', time.localtime(used))}")
    print(f"{len(found)} compiled steps, {size:.1f} MB, in {cache_folder()}")
    return 0
