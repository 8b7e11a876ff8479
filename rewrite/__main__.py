"""`python -m rewrite` is the `shardwright` command."""

import sys

from rewrite.cli import main

sys.exit(main())
