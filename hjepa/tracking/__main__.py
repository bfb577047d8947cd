"""Sends what MLflow lacks of a run or a sweep."""

from __future__ import annotations

import sys

from hjepa.tracking import main

sys.exit(main())
