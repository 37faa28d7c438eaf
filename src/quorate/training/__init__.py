"""Training: fit any ensemble, resume exactly, keep run folders. Knows no method."""

from quorate.training.callbacks import Interrupted
from quorate.training.fit import Fitted, fit
from quorate.training.loader import Loader
from quorate.training.regime import Regime
from quorate.training.settings import Settings
from quorate.training.weights import load_weights_

__all__ = ["Fitted", "Interrupted", "Loader", "Regime", "Settings", "fit", "load_weights_"]
