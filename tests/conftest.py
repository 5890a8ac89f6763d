"""Compiled steps of tests are kept apart from the user's own."""

import os
import tempfile
from pathlib import Path

os.environ["FITKIT_CACHE"] = tempfile.mkdtemp(prefix="fitkit-tests-")
# What torch finds out about the compiler is kept from run to run: it takes ten seconds.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "fitkit-tests"))
