"""CIFAR files written here byte by byte from the formats' description, whole, damaged and hostile."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.data import Augmentation
from quorate.data.images.cifar import CIFAR10, CIFAR100, cifar10, cifar100, parse_batch, read_archive, unpickle
from quorate.data.partition import partition

RNG = np.random.default_rng(0)
ROWS = 20  # per batch
NAMES = ["plane", "car", "bird", "cat"]
FINE, COARSE = ["apple", "fish", "baby", "bear"], ["fruit", "animal"]
X = RNG.integers(0, 256, (6, ROWS, 3, 32, 32)).astype(np.uint8)
Y = np.stack([RNG.permutation(np.arange(ROWS) % 4) for _ in range(6)])
SUPER = np.array([0, 1, 1, 0])  # the coarse label of each fine one


def py2(value: Any) -> bytes:
    """A value as Python 2 pickles it at protocol 2, where text is SHORT_BINSTRING or BINSTRING and NumPy is 1.x."""

    def text(content: bytes) -> bytes:
        return b"U" + bytes([len(content)]) + content if len(content) < 256 else b"T" + struct.pack("<i", len(content)) + content

    if isinstance(value, dict):
        return b"}(" + b"".join(py2(k) + py2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(py2, value)) + b"e"
    if isinstance(value, str):
        return text(value.encode())
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    dtype = (
        b"cnumpy\ndtype\n(U\x02"
        + value.dtype.str[1:].encode()
        + b"K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in value.shape) + b"t"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"


def py2_pickle(value: Any) -> bytes:
    return b"\x80\x02" + py2(value) + b"."


def batch(i: int, **changes: Any) -> dict[str, Any]:
    x, y = X[i].reshape(ROWS, -1), Y[i]
    found = {"batch_label": f"batch {i}", "labels": y.tolist(), "data": x, "filenames": [f"{n}.png" for n in range(ROWS)]}
    return found | {"fine_labels": y.tolist(), "coarse_labels": SUPER[y].tolist()} | changes


def hundred(rows: slice) -> dict[str, Any]:
    y = Y[rows].reshape(-1)
    return {"data": X[rows].reshape(len(y), -1), "fine_labels": y.tolist(), "coarse_labels": SUPER[y].tolist()}


def records(x: np.ndarray, *labels: np.ndarray) -> bytes:
    return np.concatenate([np.stack(labels, 1).astype(np.uint8), x.reshape(len(x), -1)], 1).tobytes()


def ten_files(form: str, **changes: bytes) -> dict[str, bytes]:
    """The files of a form of CIFAR-10; changes replace them, by name without extension."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    if form == "bin":
        files = {f"{n}.bin": changes.get(n, records(X[i], Y[i])) for i, n in enumerate(names)}
        return files | {"batches.meta.txt": changes.get("meta", "\n".join([*NAMES, "", ""]).encode())}
    dump = py2_pickle if form == "py2" else pickle.dumps
    files = {n: changes.get(n, dump(batch(i))) for i, n in enumerate(names)}
    return files | {"batches.meta": changes.get("meta", dump({"num_cases_per_batch": ROWS, "label_names": NAMES}))}


def hundred_files(form: str) -> dict[str, bytes]:
    train, test = slice(0, 5), slice(5, 6)
    if form == "bin":
        parts = {
            f"{n}.bin": records(X[rows].reshape(-1, 3072), SUPER[Y[rows]].reshape(-1), Y[rows].reshape(-1))
            for n, rows in (("train", train), ("test", test))
        }
        return parts | {f"{n}_label_names.txt": "\r\n".join(v).encode() for n, v in (("fine", FINE), ("coarse", COARSE))}
    dump = py2_pickle if form == "py2" else pickle.dumps
    meta = {"fine_label_names": FINE, "coarse_label_names": COARSE}
    return {"train": dump(hundred(train)), "test": dump(hundred(test)), "meta": dump(meta)}


FOLDERS = {
    "cifar10": {"py2": "cifar-10-batches-py", "py3": "cifar-10-batches-py", "bin": "cifar-10-batches-bin"},
    "cifar100": {"py2": "cifar-100-python", "py3": "cifar-100-python", "bin": "cifar-100-binary"},
}


def unpacked(root: Path, folder: str, files: dict[str, bytes]) -> Path:
    (root / folder).mkdir(parents=True)
    for name, content in files.items():
        (root / folder / name).write_bytes(content)
    (root / folder / "readme.html").write_bytes(b"hello")
    return root / folder


def archive(path: Path, folder: str, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        inside = tarfile.TarInfo(folder)
        inside.type = tarfile.DIRTYPE
        tar.addfile(inside)
        for name, content in {**files, "readme.html": b"hello"}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", ["py2", "py3", "bin"])
@pytest.mark.parametrize("where", ["folder", "parent", "tar.gz", "tar"])
def test_every_form_gives_the_same_data(tmp_path: Path, form: str, where: str) -> None:
    for kind, files, load in (("cifar10", ten_files(form), cifar10), ("cifar100", hundred_files(form), cifar100)):
        folder = FOLDERS[kind][form]
        if where.startswith("tar"):
            root = archive(tmp_path / f"{kind}.{where}", folder, files, "w:gz" if where == "tar.gz" else "w")
        else:
            root = unpacked(tmp_path, folder, files)
            root = tmp_path if where == "parent" else root
        data = load(str(root), fractions=(0.5, 0.25, 0.25), seed=3)
        x, y = X[:5].reshape(-1, 3, 32, 32), Y[:5].reshape(-1)
        rows = partition(y, [0.5, 0.25, 0.25], 3)
        for split, chosen in zip((data.train, data.validation, data.calibration), rows, strict=True):
            np.testing.assert_array_equal(split.x, x[chosen])
            np.testing.assert_array_equal(split.y, y[chosen])
            np.testing.assert_array_equal(split.ids, chosen)
        np.testing.assert_array_equal(data.test.x, X[5])
        np.testing.assert_array_equal(data.test.y, Y[5])
        np.testing.assert_array_equal(data.test.ids, 5 * ROWS + np.arange(ROWS))
        assert data.classes == tuple(NAMES if kind == "cifar10" else FINE)
        assert (data.name, data.augmentation) == (kind, Augmentation(pad=4, flip=True))


@pytest.mark.parametrize("form", ["py2", "bin"])
def test_coarse_labels(tmp_path: Path, form: str) -> None:
    root = unpacked(tmp_path, FOLDERS["cifar100"][form], hundred_files(form))
    data = cifar100(root, labels="coarse", pad=0, flip=False, name="c")
    assert data.classes == tuple(COARSE)
    assert (data.augmentation, data.name) == (None, "c")
    np.testing.assert_array_equal(data.test.y, SUPER[Y[5]])
    np.testing.assert_array_equal(data.train.y, SUPER[Y[:5]].reshape(-1)[data.train.ids])
    with pytest.raises(ValueError, match=r"labels must be 'fine' \(100 classes\) or 'coarse' .* got 'super'"):
        cifar100(root, labels="super")  # type: ignore[arg-type]


def test_ood_is_an_npz_or_another_cifar(tmp_path: Path) -> None:
    root = unpacked(tmp_path, FOLDERS["cifar10"]["py2"], ten_files("py2"))
    hundred = archive(tmp_path / "c100.tar.gz", "cifar-100-binary", hundred_files("bin"))
    np.savez(tmp_path / "a.npz", x=X[0, :5])
    data = cifar10(root, ood={"a": tmp_path / "a.npz", "c100": hundred, "self": str(root)})
    np.testing.assert_array_equal(data.ood["a"].x, X[0, :5])
    np.testing.assert_array_equal(data.ood["c100"].x, X[5])
    np.testing.assert_array_equal(data.ood["self"].x, X[5])
    assert data.ood["c100"].y is None
    with pytest.raises(FileNotFoundError, match=r"expected cifar-10-batches-py or .* or cifar-100-binary at .*none"):
        cifar10(root, ood={"none": tmp_path / "none"})


def test_unpickles_as_pickle_does() -> None:
    for content in (py2_pickle(batch(0)), pickle.dumps(batch(0), 3), pickle.dumps(batch(0), 4)):
        ours, theirs = unpickle(content), pickle.loads(content, encoding="bytes")
        theirs = {k.decode() if isinstance(k, bytes) else k: v for k, v in theirs.items()}
        assert ours.keys() == theirs.keys()
        np.testing.assert_array_equal(ours.pop("data"), theirs.pop("data"))
        assert ours == theirs


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


HOSTILE = {
    "global": b"cos\nsystem\n(S'exit 3'\ntR.",
    "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",
    "inst": b"(S'exit 3'\nios\nsystem\n.",
    "getattr": b"c__builtin__\ngetattr\n.",
    "frombuffer": b"cnumpy.core.numeric\n_frombuffer\n.",
    "persistent": b"Px\n.",
    "extension": b"\x82\x01.",
}


def test_hostile_pickles_run_nothing(tmp_path: Path) -> None:
    for protocol in range(6):
        content = pickle.dumps({"data": Touch(tmp_path / "made"), "labels": []}, protocol)
        with pytest.raises(ValueError, match=r"names (posix|nt|os)\.mkdir, which the published files do not hold") as caught:
            unpickle(content)
        assert "\n" not in str(caught.value)
        root = unpacked(tmp_path / str(protocol), "cifar-10-batches-py", ten_files("py2", data_batch_3=content))
        with pytest.raises(ValueError, match=r"data_batch_3: .* names (posix|nt|os)\.mkdir"):
            cifar10(root)
    assert not (tmp_path / "made").exists()
    for content in HOSTILE.values():
        with pytest.raises(ValueError, match="expected one of CIFAR's pickles, but"):
            unpickle(content)


@pytest.mark.parametrize("attribute", ["state", "arguments", "__setstate__", "__init__"])
def test_pickles_cannot_change_the_reader(attribute: str) -> None:
    """BUILD with (None, {name: value}) sets attributes of whatever it is given, here of what arrays are recorded by."""
    for recorder in (b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n"):
        with pytest.raises(ValueError, match="expected one of CIFAR's pickles"):
            unpickle(b"\x80\x02" + recorder + b"(N}" + py2(attribute) + b"K\x01stb0cos\nsystem\n.")
        np.testing.assert_array_equal(unpickle(py2_pickle(batch(0)))["data"], X[0].reshape(ROWS, -1))


RAW = py2_pickle(batch(0))
STATE = b"(K\x01(K\x02tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb%bU\x02abtb."
ARRAY = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (RAW[:-1], "expected one of CIFAR's pickles, but"),
        (RAW[:1000], "expected one of CIFAR's pickles, but"),
        (b"", "expected one of CIFAR's pickles, but Ran out of input"),
        (RAW + b"\0", "goes on after its end"),
        (b"PK\x03\x04", "expected one of CIFAR's pickles, but"),
        (py2_pickle([1]), "expected a dict with data and labels, found list"),
        (py2_pickle({"data": X[0].reshape(ROWS, -1)}), r"expected a dict with data and labels, found \['data'\]"),
        (py2_pickle(batch(0, data=X[0])), r"data of shape \(N, 3072\), found \(20, 3, 32, 32\)"),
        (py2_pickle(batch(0, data=X[0].reshape(ROWS, -1)[:, 1:])), r"found \(20, 3071\)"),
        (py2_pickle(batch(0, data=X[0].reshape(ROWS, -1)[:0], labels=[])), r"found \(0, 3072\)"),
        (py2_pickle(batch(0, data=X[0].reshape(ROWS, -1).view(np.int8))), "not uint8 in C order"),
        (py2_pickle(batch(0, data="text")), "found bytes"),
        (py2_pickle(batch(0, labels=[1])), "expected a list of 20 integers in 0..255 under labels, found 1 values"),
        (py2_pickle(batch(0, labels=[-1] * 20)), "found 20 values"),
        (py2_pickle(batch(0, labels="text")), "found bytes"),
        (
            pickle.dumps({"data": np.asfortranarray(X[0].reshape(ROWS, -1)), "labels": []}, 3),
            "not uint8 in C order|names _codecs",
        ),
        (ARRAY + b".", "another form than NumPy's"),
        (b"\x80\x02cnumpy\ndtype\n(U\x02u1tR.", "another form than NumPy's"),
        (ARRAY + STATE.replace(b"%b", b"\x88"), "not uint8 in C order"),
        (ARRAY + STATE.replace(b"%b", b"\x89").replace(b"(K\x02t", b"(K\x03t"), r"2 bytes for an array of shape \(3,\)"),
        (ARRAY + STATE.replace(b"%b", b"\x89").replace(b"(K\x02t", b"(Nt"), "without a shape or bytes"),
        (ARRAY + STATE.replace(b"%b", b"\x89").replace(b"U\x02ab", b"K\x02"), "without a shape or bytes"),
    ],
)
def test_refuses_damaged_pickles(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_batch(content, CIFAR10[0])
    assert "\n" not in str(caught.value)


def test_refuses_damaged_records_and_names(tmp_path: Path) -> None:
    for content in (records(X[0], Y[0])[:-1], b"", b"\0"):
        with pytest.raises(ValueError, match=r"expected records of 1 \+ 3072 bytes, found \d+ bytes"):
            parse_batch(content, CIFAR10[1])
    with pytest.raises(ValueError, match=r"records of 2 \+ 3072"):
        parse_batch(records(X[0], Y[0]), CIFAR100["fine"][1])
    cases = {
        "a": ("bin", {"meta": b" \n"}, r"batches.meta.txt: expected the classes' names, found none"),
        "b": ("py2", {"meta": py2_pickle({"names": NAMES})}, "expected the classes' names as a list under label_names"),
        "c": ("py2", {"meta": py2_pickle({"label_names": [1, 2]})}, "found none"),
        "d": ("py2", {"meta": py2_pickle({"label_names": NAMES[:2]})}, r"data_batch_1: expected labels in 0\.\.1, .* found 3"),
        "e": ("bin", {"test_batch": records(X[5], Y[5] + 9)}, r"test_batch.bin: expected labels in 0\.\.3, .* found 12"),
        "f": ("bin", {"data_batch_2": b"x"}, r"data_batch_2.bin: expected records .*: not the published file, or a damaged one"),
    }
    for name, (form, changes, said) in cases.items():
        root = unpacked(tmp_path / name, FOLDERS["cifar10"][form], ten_files(form, **changes))
        with pytest.raises(ValueError, match=said) as caught:
            cifar10(root)
        assert "\n" not in str(caught.value)


def test_missing_and_ambiguous_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected cifar-10-batches-py or cifar-10-batches-bin at .*, found neither"):
        cifar10(tmp_path)
    python = unpacked(tmp_path, "cifar-10-batches-py", ten_files("py2"))
    with pytest.raises(FileNotFoundError, match="expected cifar-100-python or cifar-100-binary"):
        cifar100(tmp_path)
    binary = unpacked(tmp_path, "cifar-10-batches-bin", ten_files("bin"))
    with pytest.raises(ValueError, match="holds cifar-10-batches-py and cifar-10-batches-bin: give the path of the one"):
        cifar10(tmp_path)
    assert cifar10(python).fingerprint() == cifar10(binary).fingerprint()
    (python / "data_batch_4").unlink()
    (python / "batches.meta").unlink()
    with pytest.raises(FileNotFoundError, match=r"got none of \['data_batch_4', 'batches.meta'\]"):
        cifar10(python)


def test_refuses_damaged_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", "cifar-10-batches-bin", ten_files("bin"))
    whole = path.read_bytes()
    wanted = [name for form in CIFAR10 for name in form.files]
    assert read_archive(path, wanted) == ten_files("bin")
    tar = gzip.decompress(whole)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    wrong_sum = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for content in (b"", b"not a tar", whole[: len(whole) // 2], whole[:-3], bytes(flipped), wrong_sum, tar[: len(tar) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tar\.gz: expected a whole \.tar\.gz, but .*: fetch it again") as caught:
            cifar10(path)
        assert "\n" not in str(caught.value)
    with tarfile.open(path, "w:gz") as twice:
        for folder in "ab":
            twice.addfile(tarfile.TarInfo(f"{folder}/data_batch_1"), io.BytesIO())
    with pytest.raises(ValueError, match="holds data_batch_1 twice"):
        cifar10(path)
    with tarfile.open(path, "w:gz") as linked:
        link = tarfile.TarInfo("data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        linked.addfile(link)
    with pytest.raises(FileNotFoundError, match="found neither"):
        cifar10(path)
