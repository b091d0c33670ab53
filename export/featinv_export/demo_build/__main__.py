"""`python -m featinv_export.demo_build` makes the built-in engine."""

import sys

from featinv_export.demo_build.cli import main

sys.exit(main())
