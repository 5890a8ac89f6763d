"""Print the JSON Schema of a spec, for editors."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    from fitkit.after.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0
