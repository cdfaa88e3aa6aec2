"""python scripts/compare.py ... is gpt2x-compare ..., for a checkout that is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt2x.commands import compare

if __name__ == "__main__":
    sys.exit(compare())  # bash's tab completion looks for the word @hydra.main in a script before it asks it
