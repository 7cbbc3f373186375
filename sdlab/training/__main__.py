"""Entry point of `python -m sdlab.training train | sample | pictures | judge | train-judge`."""

import sys

from sdlab.training.cli import main

sys.exit(main())
