"""`python -m ganserve`, which torchrun starts too."""

import sys

from ganserve.cli import main

sys.exit(main())
