"""`python -m dialect.front` is the `shardwright` command."""

import sys

from dialect.front.cli import main

if __name__ == "__main__":  # check-rules imports every module of a package
    sys.exit(main())
