"""`python -m outpace` is `outpace`."""

import sys

from outpace.cli.main import main

sys.exit(main())
