"""Folders of classes: both layouts, everything ambiguous refused by name, links and hidden files, groups in paths."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from quorate.data.listing import list_classes, list_files, path_groups

PNG = (".png", ".jpg")


def fill(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def test_one_part(tmp_path: Path) -> None:
    fill(tmp_path, "b/2.png", "b/1.JPG", "a/x.png", "a/notes.txt", "README.md", ".git/c.png", "a/.hidden.png", ".c/1.png")
    listing = list_classes(str(tmp_path), PNG)
    assert (listing.root, listing.classes) == (tmp_path, ("a", "b"))
    files = listing.parts["all"]
    assert [(f.path, f.label) for f in files] == [("a/x.png", 0), ("b/1.JPG", 1), ("b/2.png", 1)]
    assert [(f.size, f.modified_ns) for f in files] == [(7, (tmp_path / f.path).stat().st_mtime_ns) for f in files]
    assert listing.other == ("README.md", "a/notes.txt")


def test_parts(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{part}/{name}/1.png" for part in ("test", "cal", "train", "val") for name in "ab"), "test/list.txt")
    listing = list_classes(tmp_path, PNG)
    assert list(listing.parts) == ["train", "test", "validation", "calibration"]
    assert [f.path for f in listing.parts["calibration"]] == ["cal/a/1.png", "cal/b/1.png"]
    assert listing.other == ("test/list.txt",)


def test_classes_choose_folders_and_order(tmp_path: Path) -> None:
    fill(tmp_path, "bus/1.png", "car/1.png", "train/1.png", "_noise_/deep/1.png")
    listing = list_classes(tmp_path, PNG, classes=("train", "car"))
    assert listing.classes == ("train", "car")
    assert [(f.path, f.label) for f in listing.parts["all"]] == [("train/1.png", 0), ("car/1.png", 1)]
    with pytest.raises(ValueError, match=r"got the parts 'train' beside '_noise_', 'bus', 'car': parts are called 'train', "):
        list_classes(tmp_path, PNG)
    with pytest.raises(ValueError, match=r"got none for 'tram' in .*, which holds '_noise_', 'bus', 'car', 'train'"):
        list_classes(tmp_path, PNG, classes=("train", "tram"))


def test_nested_only_if_said(tmp_path: Path) -> None:
    fill(tmp_path, "a/p1/1.png", "a/p2/2.png", "a/0.png", "b/1.png")
    with pytest.raises(ValueError, match="'a' was taken for a class folder, but holds the folders 'p1', 'p2': call the parts "):
        list_classes(tmp_path, PNG)
    files = list_classes(tmp_path, PNG, nested=True).parts["all"]
    assert [f.path for f in files] == ["a/0.png", "a/p1/1.png", "a/p2/2.png", "b/1.png"]


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["a/1.png"], r"at least two class folders, got \['a'\]"),
        (["readme.txt"], r"at least two class folders, got \[\]"),
        (["a/1.png", "b/1.txt"], r"every class needs a file, got none with \.png, \.jpg in '.*b': add files"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png"], "every part, got none for 'b' in .*test, which holds 'a'"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "test/c/1.png"], "none for 'c' in .*train, which"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "validation/a/1.png"], "'val' and 'validation', which are one part"),
        (["test/a/1.png", "test/b/1.png"], "must hold the folder 'train' beside 'test'"),
        (["train/a/1.png", "train/b/1.png", "dev/a/1.png"], "got the parts 'train' beside 'dev'"),
        (["a/1.png", "b/1.png", "c.PNG", "d.png"], r"must lie in a class folder, got 2 outside, such as 'c\.PNG'"),
        (["train/1.png", "train/a/1.png", "train/b/1.png"], r"1 outside, such as 'train/1\.png'"),
        (["train/1.png", "test/1.png"], "2 outside"),
        (["training/a/1.png", "training/b/1.png", "testing/a/1.png"], "'testing' was taken for a class folder, but holds"),
    ],
)
def test_refuses_layouts(tmp_path: Path, paths: list[str], said: str) -> None:
    fill(tmp_path, *paths)
    with pytest.raises(ValueError, match=said) as caught:
        list_classes(tmp_path, PNG)
    assert "\n" not in str(caught.value)


def test_refuses_arguments(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "b/1.png")
    for classes in ("ab", (), ("a", "a")):
        with pytest.raises(ValueError, match="classes must be different folder names, got"):
            list_classes(tmp_path, PNG, classes=classes)
    for extensions in (".png", (), ("png",), (".PNG",)):
        with pytest.raises(ValueError, match="extensions must be lower-case suffixes such as"):
            list_classes(tmp_path, extensions)
    for path in (tmp_path / "none", tmp_path / "a" / "1.png"):
        with pytest.raises(FileNotFoundError, match="expected a folder, found none at"):
            list_classes(path, PNG)


def test_links(tmp_path: Path) -> None:
    root, elsewhere = fill(tmp_path / "root", "a/1.png", "b/1.png"), fill(tmp_path / "elsewhere", "deep/1.png", "2.png")
    (root / "c").symlink_to(elsewhere / "deep")
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "a" / "round.png").symlink_to("round2.png")
    (root / "a" / "round2.png").symlink_to("round.png")
    (root / "b" / "2.png").symlink_to(elsewhere / "2.png")
    os.mkfifo(root / "b" / "pipe.png")
    listing = list_classes(root, PNG)
    sizes = {f.path: f.size for f in listing.parts["all"]}
    assert sizes == {
        "a/1.png": 7,
        "a/gone.png": 0,
        "a/round.png": 0,
        "a/round2.png": 0,
        "b/1.png": 7,
        "b/2.png": 5,
        "c/1.png": 10,
    }
    assert listing.other == ("b/pipe.png",)


@pytest.mark.parametrize(
    ("link", "target", "said"), [("c", ".", "'c' and '.'"), ("c", "a", "'c' and 'a'"), ("a/up", "..", "'a/up' and '.'")]
)
def test_no_folder_twice(tmp_path: Path, link: str, target: str, said: str) -> None:
    fill(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / link).symlink_to(target, target_is_directory=True)
    for search in (lambda: list_classes(tmp_path, PNG, nested=True), lambda: list_files(tmp_path, PNG)):
        with pytest.raises(ValueError, match=f"{said} are one folder, joined by a symbolic link: .*; remove the link"):
            search()


def test_folders_and_names_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/1.png", "b/1.png")
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match=r"b' cannot be listed: .*Permission denied"):
        list_classes(tmp_path, PNG)
    monkeypatch.undo()
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"file names must be UTF-8, got 'a/\\udcff.png'"):
        list_classes(tmp_path, PNG)


def test_a_folder_of_unlabelled_files(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "a/b/2.jpg", "a/c.txt")
    listing = list_files(tmp_path, PNG)
    assert [(f.path, f.label) for f in listing.parts["all"]] == [("1.png", -1), ("a/b/2.jpg", -1)]
    assert (listing.classes, listing.other) == ((), ("a/c.txt",))
    with pytest.raises(ValueError, match=r"must hold files with \.wav, got none"):
        list_files(tmp_path, (".wav",))


@given(st.lists(st.sampled_from(["ann", "bob", "cy"]), min_size=1))
@settings(deadline=None)
def test_groups_in_paths(names: list[str]) -> None:
    groups, found = path_groups(r"/([^/]+?)_nohash_", [f"yes/{name}_nohash_{i}.wav" for i, name in enumerate(names)])
    assert [found[g] for g in groups] == names
    assert found == tuple(sorted(set(names)))
    assert groups.dtype == np.int64


def test_groups_refused() -> None:
    with pytest.raises(ValueError, match=r"groups must be a regular expression, got '\(': missing \)"):
        path_groups("(", ["a"])
    with pytest.raises(ValueError, match=r"must hold a \(group\) that names a row's group, got 'a'"):
        path_groups("a", ["a"])
    with pytest.raises(ValueError, match="must find a group in every path, got none in 2 of 3, such as 'b', 'c': correct"):
        path_groups("(a)|b", ["a", "b", "c"])
