"""`python -m mirage`, the same as `mirage`."""

import sys

from mirage.cli import main

sys.exit(main())
