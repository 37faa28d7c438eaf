"""Equal inputs in two splits are found, whatever their labels, in memory and on disk; near ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quorate.data import Split, arrays
from quorate.data.duplicates import duplicates, told
from quorate.data.store import cached


def splits() -> dict[str, Split]:
    x = np.random.default_rng(0).normal(size=(30, 2, 5)).astype(np.float32)
    x[12] = x[22] = x[3]
    x[21] = x[12] + 1e-3
    x[28] = x[15]
    x[1] = x[2]  # inside one split: not ours to tell
    x[25] = x[26]
    return {
        name: Split(x[10 * k : 10 * k + 10], None, np.arange(10) + 100 * k)
        for k, name in enumerate(("train", "validation", "test"))
    }


def test_found() -> None:
    found = duplicates(splits())
    assert {pair: ids.tolist() for pair, ids in found.items()} == {
        ("train", "validation"): [102],
        ("train", "test"): [202],
        ("validation", "test"): [202, 208],
    }
    text = told(found, splits())
    assert "1 of 10 validation rows are also in train (ids 102); " in text
    assert text.endswith("2 of 10 test rows are also in validation (ids 202, 208)")
    assert told({}, splits()) == ""


def test_on_disk_as_in_memory(tmp_path: Path) -> None:
    def on_disk(split: Split) -> Split:
        x = np.asarray(split.x)
        stored, _ = cached(tmp_path, {"first": float(x[0, 0, 0])}, 10, (2, 5), np.float32, lambda i: x[i], "x")
        return Split(stored, None, split.ids)

    disk = {name: on_disk(split) for name, split in splits().items()}
    assert {k: v.tolist() for k, v in duplicates(disk).items()} == {k: v.tolist() for k, v in duplicates(splits()).items()}
    mixed = splits() | {"test": disk["test"]}
    assert duplicates(mixed).keys() == duplicates(splits()).keys()


def test_reported_with_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (60, 3)).astype(np.uint8), np.arange(60) % 2
    data = arrays((x, y), (np.concatenate([x[:2], x[:3] // 2]), np.array([0, 1, 0, 1, 0])))
    counts = data.summary()["duplicates"]
    assert isinstance(counts, dict)
    assert sum(count for pair, count in counts.items() if pair.endswith("/test")) == 2
    from torch import nn

    from quorate import DeepEnsemble, fit

    fit(DeepEnsemble([nn.Sequential(data.normalise(), nn.Linear(3, 2))]), data, epochs=1, label="toy", progress=False)
    said = capsys.readouterr().err
    assert "toy: " in said
    assert "test rows are also in " in said
