"""Compiled steps of tests are kept apart from the user's own."""

import os
import tempfile

os.environ["FITKIT_CACHE"] = tempfile.mkdtemp(prefix="fitkit-tests-")
