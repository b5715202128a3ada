"""`python -m adjoined`, for when the script `adjoined` is not on the PATH."""

import sys

from adjoined.cli import main

if __name__ == "__main__":
    sys.exit(main())
