"""The 8×8 handwritten digits that come with scikit-learn: 1,797 images, 10 classes, no download.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), the test part, which
`sklearn.datasets.load_digits` holds. Shapes: images (N, 1, 8, 8) uint8 with values 0..16.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quorate.data.augment import Augmentation
from quorate.data.dataset import PARTS, Data
from quorate.data.held_out import hold_out, kept_classes
from quorate.data.partition import partition
from quorate.data.split import Split


def digits(held_out: Sequence[int] = (8, 9), fractions: Sequence[float] = (0.45, 0.2, 0.1, 0.25), seed: int = 0) -> Data:
    """Digits in four stratified splits; the held-out classes are the OOD set "held_out" (none for `held_out=()`).

    held_out: digits to hold out, in 0..9. fractions: of train, validation, calibration, test, sum at most 1 (rows beyond
    are left out). seed: of the partition. Labels count the kept digits from 0, class names are the digits; ids are
    scikit-learn's row numbers. Augmentation: random crop after padding by one pixel.
    Raises ImportError without scikit-learn, ValueError for other arguments.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'quorate.data.digits needs scikit-learn, which holds the images: pip install "quorate[train]"'
        ) from error
    if len(fractions) != len(PARTS):
        raise ValueError(f"fractions must be four, for {', '.join(PARTS)}, got {list(fractions)}")
    kept = kept_classes(held_out, 10)
    source = load_digits()
    x = source.images.astype(np.uint8)[:, None]
    rows, labels, others = hold_out(source.target, kept)
    parts = partition(labels, dict(zip(PARTS, fractions, strict=True)), seed)
    train, validation, calibration, test = (Split(x[rows[at]], labels[at], rows[at]) for at in (parts[part] for part in PARTS))
    ood = {"held_out": Split(x[others], None, others)} if others.size else {}
    names = [str(c) for c in kept]
    return Data.build("digits", train, validation, calibration, test, ood, names, Augmentation(pad=1))
