"""`python -m featinv_fast`."""

import sys

from featinv_fast.cli import main

sys.exit(main())
