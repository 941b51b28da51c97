"""What the service of the stock host starts at each boot of it: `make-system` names this file."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])
runpy.run_module("tests.stock.sequence", run_name="__main__")
