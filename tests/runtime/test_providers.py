"""Providers: nothing runs on another one than was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from quorate.runtime.foreign import ForeignFile
from quorate.runtime.session import CPU, OnnxStage, check_providers, check_started, open_session
from tiny_bundles import member, rows

pytestmark = pytest.mark.deciding
CUDA = "CUDAExecutionProvider"


@pytest.fixture
def without_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime made for a GPU where the GPU's libraries are not: it says nothing and runs on the CPU."""
    made = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, options, **_: made(path, options, providers=[CPU]))


@pytest.mark.usefixtures("without_libraries")
def test_one_that_can_not_be_started_is_not_replaced_silently(tmp_path: Path) -> None:
    message = f"provider '{CUDA}' could not be started here, ONNX Runtime would run on {CPU} instead: install"
    for providers in ([CUDA], [CUDA, CPU], [(CUDA, {"device_id": "0"}), CPU]):
        with pytest.raises(ValueError, match=message):
            open_session(member("a", 0).onnx, "x.onnx", providers=providers)  # type: ignore[arg-type]
    (tmp_path / "f.onnx").write_bytes(member("a", 0).onnx)
    with pytest.raises(ValueError, match=message):
        ForeignFile(tmp_path / "f.onnx", "member 'f'", providers=[CUDA, CPU])


def test_options_that_fail_are_no_reason_to_use_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a provider fails ONNX Runtime prints that and starts anew on the CPU, if it is not told otherwise."""
    made = onnxruntime.InferenceSession._create_inference_session
    calls: list[Any] = []

    def failing(self: Any, providers: Any, *others: Any) -> None:
        calls.append(providers)
        if len(calls) == 1:
            raise RuntimeError("invalid\ndevice ordinal")
        made(self, providers, *others)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", failing)
    with pytest.raises(ValueError, match=r"x\.onnx can't be run by the providers .*invalid device ordinal\): mend their options"):
        open_session(member("a", 0).onnx, "x.onnx", providers=[(CPU, {"device_id": "99"})])
    assert len(calls) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("wrong", [[None], [3], [()], [(CPU,)], [[CPU, {}]], [(CPU, 1)], {CPU: {}}, [CPU, CPU], iter([CPU])])
def test_lists_that_can_not_be_meant(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a list of .*each once, as a name or \(name, dict of options\)"):
        check_providers(wrong)


def test_those_that_are_there_are_taken() -> None:
    given = [(CPU, {"arena_extend_strategy": "kSameAsRequested"})]
    assert check_providers(given) == given  # type: ignore[arg-type]
    session = open_session(member("a", 0).onnx, "x", providers=given)  # type: ignore[arg-type]
    check_started(session, given)
    x = rows(3)
    want = OnnxStage(open_session(member("a", 0).onnx, "x"), member("a", 0).ports)(x, {})[0]
    np.testing.assert_array_equal(OnnxStage(session, member("a", 0).ports)(x, {})[0], want)
