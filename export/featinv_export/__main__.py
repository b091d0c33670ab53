"""`python -m featinv_export` is `featinv-export`."""

import sys

from featinv_export.cli import main

sys.exit(main())
