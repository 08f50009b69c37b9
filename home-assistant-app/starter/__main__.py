"""Entry point of ``python -m starter``."""

import sys

from starter.run import main

sys.exit(main())
