"""Golden outputs: what fits passes, every kind of deviation is named; the file itself is not believed either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

import quorate
from quorate.runtime import BundleError
from quorate.runtime.golden import check_golden, golden_bytes, read_golden
from tiny_bundles import bundle, chained, rows, run

pytestmark = pytest.mark.deciding


@pytest.fixture
def loaded(tmp_path: Path) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """(manifest, stages, the golden arrays) of a chain of two stages, tolerances 1e-3 and 1e-2."""
    bundle(tmp_path / "b", chained(), rtol=1e-2, atol=1e-3)
    runtime = quorate.load_bundle(tmp_path / "b", threads=1)
    return runtime.manifest, runtime.stages, load((tmp_path / "b" / runtime.manifest.golden.path).read_bytes())


def test_the_file_gives_back_what_was_put_in() -> None:
    x = rows(3)
    answers = run(chained(), x)
    arrays = load(golden_bytes(x, answers))
    assert sorted(arrays) == ["0.members", "0.write.h", "1.members", "input"]
    np.testing.assert_array_equal(arrays["input"], x)
    np.testing.assert_array_equal(arrays["0.write.h"], answers[0][1]["h"])
    np.testing.assert_array_equal(arrays["1.members"], answers[1][0])


@pytest.mark.parametrize(("name", "k"), [("0.members", 0), ("0.write.h", 0), ("1.members", 1)])
def test_a_value_may_be_off_by_its_tolerance_and_no_more(loaded: Any, name: str, k: int) -> None:
    manifest, stages, arrays = loaded
    at = tuple(np.array(arrays[name].shape) - 1)
    value = float(arrays[name][at])
    allowed = 1e-3 + 1e-2 * abs(value)
    for share, fine in ((0.9, True), (1.2, False)):
        changed = {key: array.copy() for key, array in arrays.items()}
        changed[name][at] = value + share * allowed * np.sign(value) * (1 + share * 1e-2)
        if fine:
            if name == "0.write.h":  # the second stage runs on what is stored
                changed["1.members"] = stages[1](changed["input"], {"h": changed["0.write.h"]})[0]
            assert 0.8 < check_golden(save(changed), manifest, stages) <= 1
            continue
        what = "h" if "write" in name else "members"
        with pytest.raises(
            BundleError, match=f"stage '{('first', 'second')[k]}' gives {what} that differ by up to .* on golden inputs"
        ):
            check_golden(save(changed), manifest, stages)


def test_errors_are_found_where_they_are_made(loaded: Any) -> None:
    """The second stage gets the stored carry: a wrong first stage does not blame it."""
    manifest, stages, arrays = loaded
    right = check_golden(save(arrays), manifest, stages)
    assert right < 0.01
    h = arrays["0.write.h"] + 0.5
    moved = {**arrays, "0.write.h": h, "1.members": stages[1](arrays["input"], {"h": h})[0]}
    with pytest.raises(BundleError, match="stage 'first' gives h"):
        check_golden(save(moved), manifest, stages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("1.members"), "holds other arrays than the stages have"),
        (lambda a: a.update(more=np.zeros(1)), "holds other arrays than the stages have"),
        (lambda a: a.update({"0.members": a["0.members"][:, :1]}), "has '0.members' as float32"),
        (lambda a: a.update({"0.members": a["0.members"].astype(np.float64)}), "has '0.members' as float64"),
        (lambda a: a.update({"input": a["input"].astype(np.float64)}), "has 'input' as float64"),
        (lambda a: a.update({"input": a["input"][:, :2].copy()}), "has 'input' as float32"),
        (lambda a: a["1.members"].fill(np.nan), "NaN or infinite values in '1.members'"),
        (lambda a: a["input"].fill(np.inf), "NaN or infinite values in 'input'"),
    ],
)
def test_files_that_do_not_fit(loaded: Any, change: Any, message: str) -> None:
    manifest, stages, arrays = loaded
    arrays = {key: array.copy() for key, array in arrays.items()}
    change(arrays)
    with pytest.raises(BundleError, match=message):
        check_golden(save(arrays), manifest, stages)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}"])
def test_files_that_can_not_be_read(loaded: Any, data: bytes) -> None:
    with pytest.raises(BundleError, match="is no readable safetensors file"):
        read_golden(data, loaded[0])


def test_a_stage_that_fails(loaded: Any) -> None:
    manifest, stages, arrays = loaded

    class Failing:
        name, reads, writes = "first", (), ("h",)

        def __call__(self, *_: Any) -> Any:
            raise ValueError("no kernel")

    with pytest.raises(
        BundleError, match=r"stage 'first' can't be run on the golden inputs \(no kernel\): export the bundle anew"
    ):
        check_golden(save(arrays), manifest, [Failing(), stages[1]])
