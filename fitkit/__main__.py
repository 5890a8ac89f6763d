"""`python -m fitkit` is the command line."""

import sys

from fitkit.cli import main

sys.exit(main())
