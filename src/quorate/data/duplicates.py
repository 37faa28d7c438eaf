"""Equal inputs in two splits: a row that was trained on makes the test figure flatter than it is.

Rows are equal if all their values are, bit by bit (labels and ids play no part); found by 128-bit digests, so only exact copies.

Shapes: digests (N, 16) uint8; results are ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from quorate.data.split import Split
from quorate.data.store import Stored, row_digests

Pairs = dict[tuple[str, str], np.ndarray]


def digests_of(split: Split) -> np.ndarray:
    """(N,) the digest of every row, as one 16-byte value each."""
    found = split.x.digests() if isinstance(split.x, Stored) else row_digests(split.x)
    return np.ascontiguousarray(found).view("V16").reshape(-1)


def duplicates(splits: Mapping[str, Split]) -> Pairs:
    """{(earlier, later): ids of the later split's rows whose inputs are also in the earlier one}; pairs without any are left out."""
    found: Pairs = {}
    digests = {name: digests_of(split) for name, split in splits.items()}
    for one, other in itertools.combinations(splits, 2):
        _, codes = np.unique(np.concatenate([digests[one], digests[other]]), return_inverse=True)
        first, second = np.split(codes, [len(digests[one])])
        again = np.isin(second, first)
        if again.any():
            found[one, other] = splits[other].ids[again]
    return found


def told(pairs: Pairs, splits: Mapping[str, Split]) -> str:
    """What was found, in a line: '23 of 10,000 test rows are also in train (ids 5, 9, 12 …)'; empty for none."""
    parts = []
    for (one, other), ids in pairs.items():
        shown = ", ".join(map(str, ids[:3].tolist())) + (" …" if len(ids) > 3 else "")
        parts.append(f"{len(ids):,} of {len(splits[other]):,} {other} rows are also in {one} (ids {shown})")
    return "; ".join(parts)
