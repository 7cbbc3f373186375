"""Entry point of `python -m sdlab.toybox train | sample | pictures | judge | train-judge`."""

import sys

from sdlab.toybox.cli import main

sys.exit(main())
