"""What is refused before anything is written: bundles that could not be loaded again, and folders of other programs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quorate
from quorate.runtime import Port, Ports, Program, write_bundle, writing
from tiny_bundles import FEATURES, bundle, chained, member, policy_of, rows, run
from tiny_onnx import model, node

pytestmark = pytest.mark.deciding


def write(path: Path, programs: list[Program], x: Any, answers: Any, **options: Any) -> Any:
    return write_bundle(path, programs, golden=(x, answers), policy=policy_of(programs), card="#", name="n", **options)


def test_golden_outputs_that_could_not_be_read_again(tmp_path: Path) -> None:
    x = rows(2)
    (members, written), second = run(chained(), x)
    masked = {"h": np.where(written["h"] > 0, written["h"], np.float32(-np.inf))}
    for answers, message in (
        ([(members, masked), second], "NaN or infinite values in '0.write.h'"),
        ([(members[:, :1], written), second], "has '0.members' as float32"),
        ([(members.astype(np.float64), written), second], "has '0.members' as float64"),
        ([(members, {}), second], "holds other arrays than the stages have"),
    ):
        with pytest.raises(ValueError, match=f"make no bundle: .*{message}"):
            write(tmp_path / "b", chained(), x, answers)
    with pytest.raises(ValueError, match="NaN or infinite values in 'input'"):
        write(tmp_path / "b", chained(), np.full_like(x, np.nan), [(members, written), second])
    assert not (tmp_path / "b").exists()


def test_programs_that_would_be_refused(tmp_path: Path) -> None:
    onnx = model(
        [node("RandomUniformLike", ["x"], ["members"])],
        {"x": ("float32", ("n", FEATURES))},
        {"members": ("float32", ("n", FEATURES))},
    )
    port = Port("members", "float32", (FEATURES,))
    program = Program(Ports("r", port, Port("x", "float32", (FEATURES,))), onnx)
    with pytest.raises(ValueError, match=r"make no bundle: .*RandomUniformLike draws random numbers"):
        write(tmp_path / "b", [program], rows(2), [(rows(2)[None], {})])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("count", "options"),
    [(0, {}), (4097, {}), (2, {"rtol": 0.3}), (2, {"rtol": float("nan")}), (2, {"atol": -1}), (2, {"atol": 11})],
)
def test_golden_rows_and_tolerances(tmp_path: Path, count: int, options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=rf"^{count} golden rows, rtol=.*: expected 1–4096 rows, rtol from 0 to 0.2, atol from 0"
    ):
        write(tmp_path / "b", [member("a", 0)], rows(count), [(np.zeros((2, count, 3), np.float32), {})], **options)


def test_files_that_would_be_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LARGEST_FILE", 300)
    with pytest.raises(
        ValueError, match=r"golden\.safetensors of \d+ bytes: expected at most 300, give fewer golden rows or cut"
    ):
        bundle(tmp_path / "b", [member("a", 0)])


def test_keys_that_are_no_text_become_text(tmp_path: Path) -> None:
    manifest = bundle(tmp_path / "b", [member("a", 0)], provenance={10: "ten", 9: {True: (1, 2)}})
    found = quorate.load_bundle(tmp_path / "b", digest=manifest.digest).manifest
    assert found.provenance == {"10": "ten", "9": {"true": [1, 2]}}
    with pytest.raises(ValueError, match="a key stands twice"):
        bundle(tmp_path / "b", [member("a", 0)], provenance={1: "a", "1": "b"})
    assert quorate.load_bundle(tmp_path / "b").manifest.digest == manifest.digest


def test_the_manifest_of_another_program_is_left_alone(tmp_path: Path) -> None:
    text = json.dumps({"manifest_version": 3, "name": "an extension of a browser"})
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"holds 'manifest\.json', which is no bundle's"):
        bundle(tmp_path, [member("a", 0)])
    assert (tmp_path / "manifest.json").read_text() == text


@pytest.mark.parametrize("damage", ["{", "", '{"format": "quorate-bundle/9"}'])
def test_a_damaged_bundle_is_replaced(tmp_path: Path, damage: str) -> None:
    bundle(tmp_path / "b", [member("a", 0)], name="old")
    (tmp_path / "b" / "manifest.json").write_text(damage)
    bundle(tmp_path / "b", [member("a", 1)], name="new")
    assert quorate.load_bundle(tmp_path / "b").manifest.name == "new"


def test_links(tmp_path: Path) -> None:
    bundle(tmp_path / "b", [member("a", 0)], name="old")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    bundle(tmp_path / "link", [member("a", 1)], name="new")
    assert (tmp_path / "link").is_symlink()
    assert quorate.load_bundle(tmp_path / "b").manifest.name == quorate.load_bundle(tmp_path / "link").manifest.name == "new"
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="lost is a link to nothing: expected a folder of a bundle"):
        bundle(tmp_path / "lost", [member("a", 0)])


def test_what_a_killed_writer_left_in_the_same_version_is_removed(tmp_path: Path) -> None:
    manifest = bundle(tmp_path / "b", [member("a", 0)])
    left = tmp_path / "b" / manifest.card.partition("/")[0] / ".stage0.onnx.0123abcd.part"
    left.write_bytes(b"half")
    assert bundle(tmp_path / "b", [member("a", 0)]).digest == manifest.digest
    assert not left.exists()
    assert len(os.listdir(left.parent)) == 3
