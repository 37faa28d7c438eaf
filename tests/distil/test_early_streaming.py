"""Recurrent students streamed to: equal to the cascade on whole sequences, every step computed once, nothing requested in vain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import quorate
from quorate.cascade import Policy
from quorate.cascade.streaming import StreamedStage, arrivals, stream
from quorate.distil.early import early_students
from quorate.distil.ensemble import Distilled
from quorate.ensemble import DeepEnsemble

LENGTH, STOPS = 40, (10, 20, 40)


def ensemble_of(cell: Any = "gru", pool: Any = "running", seed: int = 0, **options: Any) -> Distilled:
    students = early_students((3, LENGTH), 4, fractions=(0.25, 0.5, 1.0), cell=cell, pool=pool, hidden=(8, 6, 6), seed=seed)
    return Distilled(students, **options)


def raw(rows: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 3, LENGTH)).astype(np.float32)


def cut(x: Any, sizes: list[int], log: list[int]) -> Iterator[Any]:
    at = 0
    for size in sizes:
        log.append(size)
        yield x[..., at : at + size]
        at += size


def policy_for(ensemble: Distilled, x: np.ndarray, share: float) -> Policy:
    """About this share of the rows goes on at each exit."""
    outputs = quorate.collect(ensemble, torch.from_numpy(x))
    scores = [quorate.cascade.uncertainty.uncertainty(outputs, "msp", stop) for stop in (1, 2)]
    return Policy.of(outputs, [(float(np.quantile(u, 1 - share)), None) for u in scores], [0.5] * 3)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("framework", [np.asarray, torch.from_numpy])
def test_streamed_is_the_cascade_bit_for_bit_and_every_step_is_computed_once(cell: Any, framework: Any) -> None:
    ensemble, x = ensemble_of(cell), raw()
    stages, policy = quorate.stages(ensemble, torch.from_numpy(x[:2])), policy_for(ensemble, x, 0.4)
    expected = quorate.Cascade(stages, policy).predict(x)
    assert 0 < (expected.stage == 0).sum() < len(x)
    assert (expected.stage == 2).any()
    seen: list[tuple[int, int]] = []
    for student in ensemble.students:
        student.recurrent.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[:2])))  # type: ignore[operator, union-attr]
    for sizes in ([LENGTH], [7] * 6, [1] * LENGTH, [33, 1, 9]):
        seen.clear()
        found = stream(stages, cut(framework(np.pad(x, ((0, 0), (0, 0), (0, 3)))), sizes, []), policy)
        assert found.prediction is not None
        for name in ("label", "probs", "uncertainty", "accepted", "stage", "macs"):
            np.testing.assert_array_equal(getattr(found.prediction, name), getattr(expected, name), err_msg=name)
        np.testing.assert_array_equal(found.steps, np.array(STOPS)[expected.stage])
        still = [int((expected.stage >= k).sum()) for k in range(3)]
        assert seen == [(still[0], 10), (still[1], 10), (still[2], 20)]
        assert sum(rows * steps for rows, steps in seen) == found.steps.sum()


def test_later_samples_are_never_requested() -> None:
    ensemble, x = ensemble_of(), raw()
    stages, easy = quorate.stages(ensemble), policy_for(ensemble, x, 0.4)
    at_two = quorate.Cascade(stages, easy).predict(x).stage < 2
    log: list[int] = []
    found = stream(stages, cut(x[at_two], [4] * 10, log), easy)
    assert (sum(log), found.requested, set(found.steps.tolist())) == (20, 20, {10, 20})


def test_prefixes_are_those_of_the_whole_ensemble() -> None:
    ensemble, x = ensemble_of(pool="last"), raw()
    outputs = quorate.collect(ensemble, torch.from_numpy(x))
    log: list[int] = []
    for k, arrival in enumerate(arrivals(quorate.stages(ensemble), cut(x, [5] * 8, log), combine="logits")):
        np.testing.assert_array_equal(arrival.probs, outputs.running(slice(None), k + 1).probs())
        assert sum(log) == STOPS[k] == arrival.steps


def test_weighted_and_regression_students_stream_their_prefixes() -> None:
    x = raw()
    with torch.no_grad():
        weighted, values = ensemble_of(weights=(1.0, 2.0, 1.0)), ensemble_of(kind="values")
        plain = ensemble_of()(torch.from_numpy(x)).double().numpy()
    found = stream(quorate.stages(weighted), [x], combine="last")
    assert found.prediction is not None
    np.testing.assert_array_equal(found.prediction.label, (plain * [[[1]], [[2]], [[1]]]).sum(0).argmax(-1))
    regressed = stream(quorate.stages(values), [x], kind="values", combine="last")
    assert regressed.values is not None
    np.testing.assert_allclose(regressed.values, plain.mean(0), atol=1e-6)


def test_a_gradient_in_the_chunks_and_training_mode_play_no_part() -> None:
    ensemble, x = ensemble_of("lstm"), torch.from_numpy(raw())
    stages = quorate.stages(ensemble)
    expected = stream(stages, [x]).prediction
    for student in ensemble.students:
        student.train()
    found = stream(stages, [x.clone().requires_grad_()]).prediction
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found.probs, expected.probs)


def test_nan_in_tensors_and_integers() -> None:
    stages, x = quorate.stages(ensemble_of()), torch.from_numpy(raw())
    x[5, 1, 12] = torch.inf
    with pytest.raises(ValueError, match="steps 10 … 19 are NaN or infinite in rows 5"):
        stream(stages, [x])
    whole = torch.randint(0, 255, (4, 3, LENGTH), dtype=torch.uint8)
    a, b = stream(stages, [whole]).prediction, stream(stages, [whole.float()]).prediction
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a.probs, b.probs)


def test_wrapped_stages_say_whether_they_can_be_streamed_to() -> None:
    assert all(isinstance(stage, StreamedStage) and stage.span is not None for stage in quorate.stages(ensemble_of()))
    plain = quorate.stages(DeepEnsemble([nn.Sequential(nn.Flatten(), nn.Linear(3 * LENGTH, 4))]))
    assert plain[0].span is None
    with pytest.raises(ValueError, match="'member0' can't be streamed to: expected span"):
        stream(plain, [raw()])
    with pytest.raises(ValueError, match=r"stage 'member0' has no span of steps and arrived\(part, carry\)"):
        plain[0].arrived(Tensor(raw()), {})
