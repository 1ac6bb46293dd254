"""``python -m ideal_jax``."""

import sys

from ideal_jax.cli import main

sys.exit(main())
