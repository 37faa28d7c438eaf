"""The data object: what it works out, what its fingerprint depends on, and everything that is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
import pytest
import torch

from quorate.data import Augmentation, Data, Split, digits

PARTS = ("train", "validation", "calibration", "test")


def split(rows: int, start: int, shape: tuple[int, ...] = (2, 3, 3), dtype: Any = np.uint8, classes: int = 3) -> Split:
    x = np.random.default_rng(start).integers(0, 256, (rows, *shape)).astype(dtype)
    return Split(x, np.arange(rows) % classes, np.arange(start, start + rows))


def arguments(**changes: Any) -> dict[str, Any]:
    parts = {part: split(6 + k, 100 * k) for k, part in enumerate(PARTS)}
    ood = {"far": Split(np.zeros((4, 2, 3, 3), np.uint8), None, np.arange(4)), "near": split(5, 0)}
    base = {"name": "toy", **parts, "ood": ood, "classes": ("a", "b", "c"), "augmentation": Augmentation(pad=1)}
    return {**base, **changes}


def test_build() -> None:
    data = Data.build(**arguments(classes=["a", "b", "c"]))
    x = data.train.x.astype(np.float64)
    assert data.shape == (2, 3, 3)
    assert data.classes == ("a", "b", "c")
    np.testing.assert_allclose(data.mean, x.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(data.std, x.std((0, 2, 3)), rtol=1e-13)
    assert list(data.splits()) == list(PARTS)
    assert all(data.splits()[part] is getattr(data, part) for part in PARTS)
    out = data.normalise()(data.train.batch(np.arange(6))[0])
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.square().mean((0, 2, 3)), torch.ones(2), atol=1e-5, rtol=0)


def test_mean_and_std_come_from_the_training_split_alone() -> None:
    data = Data.build(**arguments())
    other = Data.build(**arguments(validation=split(9, 500), test=split(9, 600), ood={}))
    assert (data.mean, data.std) == (other.mean, other.std)
    assert Data.build(**arguments(train=split(9, 700))).mean != data.mean


def test_features_and_constant_ones() -> None:
    x = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    x[:, 2] = 0.3
    parts = {p: Split(x + k * (np.arange(4) == 2), np.arange(9) % 2, np.arange(9) + 9 * k) for k, p in enumerate(PARTS)}
    data = Data.build("table", **parts, ood={}, classes=("no", "yes"))
    assert data.augmentation is None
    assert len(data.mean) == 4
    assert data.std[2] == 1
    out = data.normalise()(data.train.batch([0, 1])[0])
    assert out[:, 2].abs().max() < 1e-6


def test_frozen() -> None:
    ood: dict[str, Split] = {}
    data = Data.build(**arguments(ood=ood))
    ood["late"] = split(3, 0)
    assert data.ood == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]


def test_summary_is_json() -> None:
    data = Data.build(**arguments())
    summary = data.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["rows"] == {"train": 6, "validation": 7, "calibration": 8, "test": 9}
    assert summary["ood"] == {"far": 4, "near": 5}
    assert summary["augmentation"] == {"pad": 1, "flip": False, "fill": 0}
    assert summary["dtype"] == "uint8"
    assert summary["shape"] == [2, 3, 3]
    assert summary["classes"] == ["a", "b", "c"]
    assert summary["mean"] == list(data.mean)
    assert summary["fingerprint"] == data.fingerprint()
    assert Data.build(**arguments(augmentation=None)).summary()["augmentation"] is None
    assert repr(data) == (
        "Data('toy': 3 classes, (2, 3, 3) uint8, rows: train 6, validation 7, calibration 8, test 9, far 4, near 5)"
    )


def test_fingerprint_is_sha256_of_what_is_documented() -> None:
    data = Data.build(**arguments())

    def sha(*arrays: np.ndarray) -> str:
        heads = (f"{'|u1' if a.dtype == np.uint8 else '<i8'}{a.shape};".encode() for a in arrays)
        return hashlib.sha256(b"".join(h + a.tobytes() for h, a in zip(heads, arrays, strict=True))).hexdigest()

    sets = {**data.splits(), **{f"ood/{n}": s for n, s in data.ood.items()}}
    content = {
        "classes": ["a", "b", "c"],
        "name": "toy",
        "shape": [2, 3, 3],
        "splits": {n: sha(*(a for a in (s.x, s.ids, s.y) if a is not None)) for n, s in sorted(sets.items())},
    }
    text = json.dumps(content, separators=(",", ":"))
    assert data.fingerprint() == hashlib.sha256(text.encode()).hexdigest()


def test_fingerprint_changes_with_every_part_of_the_content() -> None:
    base = Data.build(**arguments())
    prints = {base.fingerprint()}
    far = base.ood["far"]
    one_pixel = base.test.x.copy()
    one_pixel[-1, -1, -1, -1] ^= 1
    test = base.test
    changes: list[dict[str, Any]] = [
        {"name": "toy2"},
        {"classes": ("a", "b", "d")},
        {"test": Split(one_pixel, test.y, test.ids)},
        {"test": Split(test.x, np.roll(test.y, 1), test.ids)},
        {"test": Split(test.x, test.y, test.ids + 1)},
        {"test": test.subset([1, 0, *range(2, 9)])},
        {"validation": base.calibration, "calibration": base.validation},
        {"ood": {"far": far}},
        {"ood": {"far": base.ood["near"], "near": far}},
        {"ood": {"far": Split(far.x, np.zeros(4, int), far.ids), "near": base.ood["near"]}},
        {p: Split(getattr(base, p).x.astype(np.float32), getattr(base, p).y, getattr(base, p).ids) for p in PARTS} | {"ood": {}},
    ]
    for change in changes:
        prints.add(Data.build(**arguments(**change)).fingerprint())
    assert len(prints) == len(changes) + 1
    for same in ({}, {"augmentation": None}, {"ood": dict(reversed(base.ood.items()))}):
        assert Data.build(**arguments(**same)).fingerprint() == base.fingerprint()


def labelled(y: list[int], start: int = 0) -> Split:
    return Split(np.zeros((len(y), 2, 3, 3), np.uint8), np.array(y), np.arange(start, start + len(y)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": ""}, "name: names must be non-empty"),
        ({"ood": {"": split(3, 0)}}, "ood: names must be"),
        ({"classes": ("a", "a", "b")}, "classes: names must be .* without repeats"),
        ({"classes": (1, 2, 3)}, "classes: names must be"),
        ({"classes": "abc"}, "sequence of names, got the one string 'abc'"),
        ({"classes": ("a",)}, r"at least two classes, got \['a'\]"),
        ({"test": split(5, 900, (2, 3, 4))}, r"shape \(2, 3, 3\) .* got \(2, 3, 4\) and uint8 in the test split"),
        ({"validation": split(5, 900, dtype=np.float32)}, "dtype uint8, got .* float32 in the validation split"),
        ({"ood": {"far": split(5, 900, (1, 3, 3))}}, r"got \(1, 3, 3\) .* in the ood 'far' split"),
        ({"ood": {"far": split(5, 900, dtype=np.float32)}}, "float32 in the ood 'far' split"),
        ({"calibration": labelled([0, 5, 1, 3], 900)}, r"0\.\.2 .* got label 5 in rows 1, 3 of the calibration split"),
        ({"test": Split(np.zeros((2, 2, 3, 3), np.uint8), None, np.arange(2) + 900)}, "test split needs labels"),
        ({"train": labelled([0, 2, 0])}, r"none for 1 of 3 classes, such as \['b'\]"),
        ({"test": split(5, 3)}, r"3 ids in both train and test, such as \[3, 4, 5\]"),
        ({"calibration": split(5, 106)}, r"1 ids in both validation and calibration, such as \[106\]"),
        ({"augmentation": Augmentation(pad=3)}, "pad=3 for 3×3 images"),
        ({"augmentation": Augmentation(fill=300)}, "0..255"),
    ],
)
def test_refuses(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Data.build(**arguments(**changes))
    assert "\n" not in str(caught.value)


def test_refuses_augmentation_without_images_and_moments_that_do_not_fit() -> None:
    parts = {p: split(6, 10 * k, (4,)) for k, p in enumerate(PARTS)}
    with pytest.raises(ValueError, match=r"images of shape \(C, H, W\), got \(4,\)"):
        Data.build("table", **parts, ood={}, classes=("a", "b", "c"), augmentation=Augmentation())
    data = Data.build(**arguments())
    with pytest.raises(ValueError, match=r"2 channels .* got 1 and 2"):
        dataclasses.replace(data, mean=(0.0,))
    with pytest.raises(ValueError, match="positive"):
        dataclasses.replace(data, std=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"shape \(9,\) .* in the train split"):
        dataclasses.replace(data, shape=(9,))


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "."])
def test_ood_names_are_file_names(name: str) -> None:
    data = digits()
    if name in ("..", "."):  # harmless as part of ood-NAME.safetensors
        Data.build("d", *data.splits().values(), {name: data.ood["held_out"]}, data.classes)
        return
    with pytest.raises(ValueError, match="names become file names, got"):
        Data.build("d", *data.splits().values(), {name: data.ood["held_out"]}, data.classes)
