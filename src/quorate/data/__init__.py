"""One typed object for every data set, and where it comes from: built in, arrays, files, folders, tables, sound, other libraries."""

from __future__ import annotations

from quorate.data.arrays import arrays
from quorate.data.audio import Clip, LogMel, audio_folder
from quorate.data.augment import Augmentation
from quorate.data.dataset import Data
from quorate.data.digits import digits
from quorate.data.hub import hub
from quorate.data.idx import FASHION_MNIST_CLASSES, idx
from quorate.data.images import cifar10, cifar100, image_folder
from quorate.data.normalise import Normalise
from quorate.data.npz import npz
from quorate.data.npz_rows import npz_rows
from quorate.data.regression import GaussianOutput
from quorate.data.split import Split
from quorate.data.store import Stored
from quorate.data.tables import TableEncoder, read_table, table
from quorate.data.torch_dataset import from_datasets

__all__ = [
    "FASHION_MNIST_CLASSES",
    "Augmentation",
    "Clip",
    "Data",
    "GaussianOutput",
    "LogMel",
    "Normalise",
    "Split",
    "Stored",
    "TableEncoder",
    "arrays",
    "audio_folder",
    "cifar10",
    "cifar100",
    "digits",
    "from_datasets",
    "hub",
    "idx",
    "image_folder",
    "npz",
    "npz_rows",
    "read_table",
    "table",
]
