"""The parts that were given stay what they are, and those that were not are cut off train."""

from __future__ import annotations

import numpy as np
import pytest

from quorate.data import Augmentation
from quorate.data.arrays import assemble, assemble_parts, numbered
from quorate.data.split import Split

RNG = np.random.default_rng(0)


def part(start: int, rows: int = 40) -> Split:
    return numbered("part", RNG.integers(0, 256, (rows, 1, 4, 4)).astype(np.uint8), np.arange(rows) % 2, start)


@pytest.mark.parametrize(
    "given", [(), ("test",), ("calibration",), ("validation", "test"), ("test", "validation", "calibration")]
)
def test_equals_assemble(given: tuple[str, ...]) -> None:
    parts = {name: part(40 * i) for i, name in enumerate(("train", *given))}
    rest = ((0.6, *[0.4 / (3 - len(given))] * (3 - len(given))) if len(given) < 3 else None), 5, {"far": part(0)}, ("no", "yes")
    more = (*rest, Augmentation(pad=1), (), {"kind": "mine"})
    data = assemble_parts("n", parts, *more)
    expected = assemble("n", parts["train"], *(parts.get(name) for name in ("test", "validation", "calibration")), *more)  # type: ignore[arg-type]
    assert data.fingerprint() == expected.fingerprint()
    assert (data.augmentation, data.preprocessing) == (Augmentation(pad=1), {"kind": "mine"})
    for name in given:
        assert getattr(data, name) is parts[name]
