"""`python -m launcher`, the same as `mimo-launch`."""

import sys

from launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
