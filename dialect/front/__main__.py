"""`python -m dialect.front` is the `shardwright` command."""

import sys

from dialect.front.cli import main

sys.exit(main())
