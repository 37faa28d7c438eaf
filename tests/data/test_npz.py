"""Data sets from .npz files: every layout, every damage."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.data import Augmentation, arrays, npz
from quorate.data.npz import channel_first, read_npz

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (60, 3, 4, 5)).astype(np.uint8)  # NCHW, all axes different
Y = np.arange(60) % 3


def write(path: Path, **changes: Any) -> Path:
    """x_train, y_train, x_test, y_test in NCHW; changes replace keys, or drop them where None."""
    keys = {"x_train": X[:45], "y_train": Y[:45], "x_test": X[45:], "y_test": Y[45:].astype(np.uint8), **changes}
    np.savez_compressed(path, **{k: v for k, v in keys.items() if v is not None})
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_equals_arrays(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", x_train=X[:45], y_train=Y[:45], x_test=X[45:], y_test=Y[45:], notes=np.arange(3))
    np.savez(tmp_path / "far.npz", x=X[:7])
    options = {"fractions": (0.6, 0.2, 0.2), "seed": 3, "classes": ("a", "b", "c"), "augmentation": Augmentation(pad=1)}
    data = npz(tmp_path / "a.npz", layout="nchw", ood={"far": tmp_path / "far.npz"}, name="n", **options)
    other = arrays((X[:45], Y[:45]), (X[45:], Y[45:]), ood={"far": X[:7]}, name="n", **options)
    assert data.fingerprint() == other.fingerprint()
    assert (data.mean, data.std, data.augmentation) == (other.mean, other.std, other.augmentation)


def test_given_splits_are_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x_val=X[:6], y_val=Y[:6], x_cal=X[6:15], y_cal=Y[6:15])
    data = npz(str(path), layout="nchw")
    other = arrays((X[:45], Y[:45]), (X[45:], Y[45:]), (X[:6], Y[:6]), (X[6:15], Y[6:15]), name="npz")
    assert data.fingerprint() == other.fingerprint()
    only = npz(write(tmp_path / "b.npz", x_cal=X[6:15], y_cal=Y[6:15]), layout="nchw")
    np.testing.assert_array_equal(only.calibration.x, X[6:15])
    assert len(only.train) + len(only.validation) == 45


def test_groups(tmp_path: Path) -> None:
    who = np.array([f"p{i // 3:02d}" for i in range(60)])
    groups = {"g_train": who[:30], "g_test": who[30:42], "g_val": who[42:51], "g_cal": who[51:]}
    parts = {"train": slice(0, 30), "test": slice(30, 42), "val": slice(42, 51), "cal": slice(51, 60)}
    rows = {f"{key}_{part}": values[at] for part, at in parts.items() for key, values in (("x", X), ("y", Y))}
    data = npz(write(tmp_path / "all.npz", **rows, **groups), layout="nchw")
    for split in data.splits().values():
        np.testing.assert_array_equal(split.groups, split.ids // 3)
    data = npz(write(tmp_path / "two.npz", g_train=np.arange(45) // 3, g_test=np.arange(45, 60) // 3), layout="nchw")
    for split in data.splits().values():
        np.testing.assert_array_equal(split.groups, split.ids // 3)
    assert npz(write(tmp_path / "none.npz"), layout="nchw").train.groups is None


LAYOUTS = {
    "nchw": (X, X),
    "nhwc": (X.transpose(0, 2, 3, 1), X),
    "nhw": (X[:, 0], X[:, :1]),
    "ncl": (X[:, :, 0], X[:, :, 0]),
    "nlc": (X[:, :, 0].transpose(0, 2, 1), X[:, :, 0]),
    "features": (X[:, :, 0, 0].astype(np.float32), X[:, :, 0, 0].astype(np.float32)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    stored, expected = LAYOUTS[layout]
    np.savez(tmp_path / "far.npz", x=stored[:5])
    path = write(tmp_path / "a.npz", x_train=stored[:45], x_test=stored[45:])
    data = npz(path, layout=layout, ood={"far": tmp_path / "far.npz"})
    np.testing.assert_array_equal(data.test.x, expected[45:])
    np.testing.assert_array_equal(data.train.x, expected[:45][data.train.ids])
    np.testing.assert_array_equal(data.ood["far"].x, expected[:5])
    for other, (array, _) in LAYOUTS.items():
        if array.ndim != stored.ndim:
            with pytest.raises(ValueError, match=rf"x_train: layout '{other}' has {array.ndim} axes, got shape"):
                npz(path, layout=other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y_test": None}, r"must hold the keys .* got \['x_test', 'x_train', 'y_train'\]: \['y_test'\] are missing"),
        ({"x_val": X[:3]}, "both x_val and y_val or neither"),
        ({"y_cal": Y[:3]}, "both x_cal and y_cal or neither"),
        ({"x_validation": X[:3], "y_validation": Y[:3]}, r"got also \['x_validation', 'y_validation'\]"),
        ({"g_train": Y[:45]}, r"groups of all its parts, \['g_train', 'g_test'\], or of none, got \['g_train'\]: add or remove"),
        ({"g_train": Y[:45], "g_test": Y[45:], "g_val": Y[:3]}, r"or of none, got \['g_train', 'g_test', 'g_val'\]"),
        ({"g_train": np.arange(45), "g_test": np.arange(30, 45)}, r"got \[30, 31, 32\] in both train and test"),
        ({"g_train": Y[:45], "g_test": Y[45:] * 0.5}, "groups of test must name each of the 15 rows' group"),
        ({"g_training": Y[:45]}, r"keys x_…, y_… and g_… must be among .*'g_cal'\], got also \['g_training'\]"),
        ({"x_train": X[:45].astype(np.int32)}, "train: x must be uint8, float32 or float64, got int32"),
        ({"x_train": np.array([None] * 45)}, "'x_train' cannot be read: Object arrays"),
        ({"y_train": Y[:45].astype(float)}, "y holds floats, of 1 targets: name them"),
        ({"y_train": Y[:45, None]}, r"train: y must be .* \(45, 1\)"),
        ({"x_test": X[45:, :2]}, "in the test split"),
    ],
)
def test_refuses_contents(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "a.npz", **changes)
    with pytest.raises(ValueError, match=said) as caught:
        npz(path, layout="nchw")
    assert "\n" not in str(caught.value)


def test_refuses_unknown_layouts_and_ood_without_x(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"layout must be one of features, nchw, nhwc, .* got 'hwcn'"):
        npz(path, layout="hwcn")
    with pytest.raises(ValueError, match=r"must hold the keys \['x'\], got \['x_test'"):
        npz(path, layout="nchw", ood={"far": path})
    np.savez(tmp_path / "far.npz", x=X[:, 0])
    with pytest.raises(ValueError, match=r"far.npz, x: layout 'nchw' has 4 axes, got shape \(60, 4, 5\)"):
        npz(path, layout="nchw", ood={"far": tmp_path / "far.npz"})
    with pytest.raises(ValueError, match="somewhere: layout"):
        channel_first(X, "nlc", "somewhere")


def test_one_array_of_all_rows_is_for_another_loader(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    with pytest.raises(ValueError, match=r"got \['x', 'y'\]: for one array of all rows, .* quorate.data.npz_rows is the loader"):
        npz(tmp_path / "a.npz", layout="nchw")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"expected an \.npz file, found none at"):
            npz(path, layout="nchw")


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", npy(np.arange(3)), b"\x80\x04N.", b"not a zip file at all" * 9], ids=range(5)
)
def test_refuses_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz must be an \.npz file, but .*: write it with numpy.savez") as caught:
        read_npz(path, ["x"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_refuses_damaged_members(tmp_path: Path, method: int) -> None:
    whole = npy(X)
    huge = npy(np.zeros(1, np.uint8)).replace(b"(1,)", b"(999999999999999999999,)".ljust(4))[:128]
    members = {
        "short": whole[:-1],
        "surplus": whole + b"\0",
        "header": whole[:40],
        "empty": b"",
        "other": b"hello",
        "huge": huge,
    }
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, content in {**members, "x": whole}.items():
            archive.writestr(f"{key}.npy", content)
    np.testing.assert_array_equal(read_npz(path, ["x"])["x"], X)
    for key in members:
        with pytest.raises(ValueError, match=rf"a\.npz must hold plain arrays, but '{key}' cannot be read: ") as caught:
            read_npz(path, ["x"], [key])
        assert "\n" not in str(caught.value)


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(40, dtype=np.uint8))
    content = path.read_bytes()
    noticed: list[str] = []
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0x41]) + content[i + 1 :])
        try:
            x = read_npz(path, ["x"])["x"]
        except ValueError as error:
            noticed.append(str(error))
        else:  # a byte that carries no data, such as a time stamp
            np.testing.assert_array_equal(x, np.arange(40))
    assert len(noticed) > len(content) / 2
    assert "\n" not in "".join(noticed)


def test_never_unpickles(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "boom",))

    np.savez(tmp_path / "a.npz", x=np.array([Bomb()], object))
    with pytest.raises(ValueError, match="cannot be read"):
        read_npz(tmp_path / "a.npz", ["x"])
    assert not (tmp_path / "boom").exists()
