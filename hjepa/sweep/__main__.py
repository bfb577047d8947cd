"""A worker of a sweep."""

from __future__ import annotations

import sys

from hjepa.sweep import main

sys.exit(main())
