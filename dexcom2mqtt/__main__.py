"""``python -m dexcom2mqtt`` is the command ``dexcom2mqtt``."""

import sys

from dexcom2mqtt.cli import main

if __name__ == "__main__":
    sys.exit(main())
