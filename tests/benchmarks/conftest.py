"""The simulation is run as a script, so its folder is what Python finds it by."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
