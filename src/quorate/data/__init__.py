"""One typed object for every data set: four splits, OOD sets, classes, normalisation and augmentation."""

from __future__ import annotations

from quorate.data.arrays import arrays
from quorate.data.augment import Augmentation
from quorate.data.dataset import Data
from quorate.data.digits import digits
from quorate.data.idx import FASHION_MNIST_CLASSES, idx
from quorate.data.normalise import Normalise
from quorate.data.npz import npz
from quorate.data.split import Split

__all__ = [
    "FASHION_MNIST_CLASSES",
    "Augmentation",
    "Data",
    "Normalise",
    "Split",
    "arrays",
    "digits",
    "idx",
    "npz",
]
