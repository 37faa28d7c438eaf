"""What all tests share. Needs neither PyTorch nor Hypothesis: the deciding half is also tested where there are none."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # for the contract that every ensemble is tested by, ensemble_contract.py

try:
    from hypothesis import settings
except ImportError:
    pass
else:
    settings.register_profile("quorate", deadline=None, derandomize=True)
    settings.load_profile("quorate")
