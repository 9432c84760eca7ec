"""The example's modules are imported as its script imports them: from their folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "digits_vlm"))
