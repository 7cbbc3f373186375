"""Entry point of `python -m sdlab`."""

import sys

from sdlab.cli import main

sys.exit(main())
