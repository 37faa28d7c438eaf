"""The contract that every ensemble is tested by: ``check_ensemble(make, x)``.

``make()`` builds a fresh ensemble of one architecture with new random weights; ``x`` (B, …) is a batch of at least 4 raw inputs that
differ. Each check is a function of both and says in its assertion what is broken. An ensemble may declare ``shared``: the names of the
parameters (as in ``named_parameters``) that more than one member reads on purpose, such as features that a later student
reuses; without it members share nothing.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import quorate.ensemble
from quorate.cascade import Cascade, Policy, simulate
from quorate.combination import COMBINES, Running
from quorate.outputs import Outputs

Make = Callable[[], nn.Module]
CLOSE = 1e-5  # between two ways to compute the same in float32
BATCH = torch.export.Dim.DYNAMIC


def run(ensemble: nn.Module, x: Tensor) -> Tensor:
    """Logits in eval mode, without gradients."""
    with torch.no_grad():
        logits: Tensor = ensemble.eval()(x)
    return logits


def lived(make: Make, x: Tensor) -> nn.Module:
    """A fresh ensemble that has seen a batch in training, so that its statistics are not those it starts with."""
    ensemble = make().train()
    with torch.no_grad():
        ensemble(x)
    return ensemble.eval()


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the larger values; infinite where the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / max(1.0, float(b.abs().max())))


def doubled(ensemble: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Both in double precision; integer inputs stay."""
    return copy.deepcopy(ensemble).double(), x.double() if x.is_floating_point() else x


def check_shape(make: Make, x: Tensor) -> None:
    """(M, B, C) floats in training and evaluation, for batches of other sizes too; ``combine`` is a known one."""
    assert len(x) >= 4, f"x has {len(x)} rows: the contract needs at least 4"
    ensemble = make()
    for mode in (True, False):
        for rows in (len(x), 2) if mode else (len(x), 2, 1):
            logits = ensemble.train(mode)(x[:rows])
            got = tuple(logits.shape)
            assert len(got) == 3, f"shape: {got} for {rows} rows, expected member-first (M, B, C)"
            assert got[1] == rows, f"shape: {got} for {rows} rows, expected them second, (M, {rows}, C)"
            assert got[0] >= 1, f"shape: {got}, expected at least one member"
            assert got[2] >= 2, f"shape: {got}, expected at least two classes"
            assert logits.is_floating_point(), f"shape: logits of {logits.dtype}, expected floats"
            assert logits.isfinite().all(), "shape: logits hold NaN or infinity"
    combine = getattr(ensemble, "combine", "probs")
    assert combine in COMBINES, f"shape: combine is {combine!r}, expected one of {COMBINES}"


def check_rows(make: Make, x: Tensor) -> None:
    """In eval mode each row is computed from itself alone, and stays in its place. In float64, so that nothing hides in rounding."""
    ensemble, x = doubled(lived(make, x), x)
    logits = run(ensemble, x)
    order = torch.arange(len(x)).roll(1)
    order[:2] = order[:2].flip(0)
    assert apart(run(ensemble, x[order]), logits[:, order]) < 1e-9, "rows: permuted inputs do not give permuted outputs"
    for row in range(len(x)):
        alone = run(ensemble, x[row : row + 1])
        assert apart(alone, logits[:, row : row + 1]) < 1e-9, f"rows: row {row} alone gives other outputs than among others"
    spread = (logits[:, :1] - logits[:, 1:]).abs().amax()
    assert spread > 0, "rows: all rows give equal outputs, so the inputs do not matter (or x repeats one row)"


def gradients(ensemble: nn.Module, x: Tensor) -> list[dict[str, Tensor]]:
    """Per member: name of a parameter → the places (of its shape) where the member's outputs have a non-zero gradient."""
    parameters = {name: p for name, p in ensemble.named_parameters() if p.requires_grad}
    logits = ensemble(x)
    weights = torch.linspace(0.5, 1.5, logits[0].numel(), dtype=logits.dtype).reshape(logits.shape[1:])  # no sum that cancels
    found = []
    for member in logits:
        grads = torch.autograd.grad((member * weights).sum(), list(parameters.values()), allow_unused=True, retain_graph=True)
        found.append({n: g != 0 for n, g in zip(parameters, grads, strict=True) if g is not None and bool((g != 0).any())})
    return found


def check_isolation(make: Make, x: Tensor) -> None:
    """No parameter, element by element, reaches two members: by gradients, and by NaN put where each member has its parameters.

    The gradients are exact zeros elsewhere. NaN passes through every operation, also where a gradient happens to be zero.
    """
    original, x = doubled(lived(make, x), x)
    shared = set(getattr(original, "shared", ()))
    unknown = shared - {name for name, _ in original.named_parameters()}
    assert not unknown, f"isolation: shared names {sorted(unknown)}, which are no parameters"
    for mode in (False, True):
        ensemble = copy.deepcopy(original).train(mode)
        masks = gradients(ensemble, x)
        for i, mask in enumerate(masks):
            assert mask, f"isolation: member {i} depends on no parameter"
            for j, other in enumerate(masks[:i]):
                for name in sorted(mask.keys() & other.keys() - shared):
                    both = int((mask[name] & other[name]).sum())
                    assert not both, f"isolation: members {j} and {i} share {both} elements of {name!r} (train={mode})"
    masks = gradients(original, x)
    clean = run(original, x)
    for i, mask in enumerate(masks):
        poisoned = copy.deepcopy(original)
        with torch.no_grad():
            for name, parameter in poisoned.named_parameters():
                if name in mask and name not in shared:
                    parameter[mask[name]] = torch.nan
        logits = run(poisoned, x)
        for j in set(range(len(masks))) - {i}:
            assert torch.equal(logits[j], clean[j]), f"isolation: member {j} changes with the parameters of member {i}"


def check_each(make: Make, x: Tensor) -> None:
    """Where ``each`` is offered: equal inputs give ``forward``, inputs of its own a member's row of it, and no other member's reaches it.

    The last, bit for bit, in evaluation and training: another member's input becomes NaN, or its first row throughout where it is integer.
    """
    ensemble, x = doubled(lived(make, x), x)
    if not quorate.ensemble.has_each(ensemble):
        return
    logits = run(ensemble, x)
    members = range(len(logits))

    def own(batches: Tensor, mode: bool = False) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return quorate.ensemble.each(copy.deepcopy(ensemble).train(mode), batches)

    together = own(torch.stack([x for _ in members]))
    assert together.shape == logits.shape, f"each: it gives {tuple(together.shape)}, forward {tuple(logits.shape)}"
    assert apart(together, logits) < 1e-9, "each: with equal inputs for all members it is not forward"
    batches = torch.stack([x.roll(m + 1, 0) for m in members])
    for rows in (batches, batches[:, :2]):
        found = own(rows)
        for m in members:
            assert apart(found[m], run(ensemble, rows[m])[m]) < 1e-9, f"each: row {m} is not member {m} on its own input"
    for mode in (False, True):
        clean = own(batches, mode)
        for j in members:
            changed = batches.clone()
            changed[j] = torch.nan if x.is_floating_point() else changed[j][:1]
            after = own(changed, mode)
            assert not torch.equal(after[j], clean[j]), f"each: member {j} does not see its input (train={mode})"
            for i in set(members) - {j}:
                assert torch.equal(after[i], clean[i]), f"each: member {i} changes with the input of member {j} (train={mode})"


def check_determinism(make: Make, x: Tensor) -> None:
    """Two calls in eval mode give the same bits, whatever the state of the random generator."""
    ensemble = lived(make, x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = run(ensemble, x)
        torch.manual_seed(1)
        assert torch.equal(run(ensemble, x), first), "determinism: two calls in eval mode give different bits"


def check_state_dict(make: Make, x: Tensor) -> None:
    """The state dict, through a safetensors file into a fresh ensemble, carries everything: the same bits come out."""
    ensemble, fresh = lived(make, x), make()
    logits = run(ensemble, x)
    assert not torch.equal(run(fresh, x), logits), "state dict: make() gives the same weights again, expected new random ones"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in ensemble.state_dict().items()}, file)
        fresh.load_state_dict(load_file(file))
    assert torch.equal(run(fresh, x), logits), "state dict: a fresh ensemble with the saved tensors gives other outputs"


def check_copy(make: Make, x: Tensor) -> None:
    """A deep copy gives the same bits, and goes on doing so whatever happens to the original."""
    ensemble = lived(make, x)
    logits = run(ensemble, x)
    twin = copy.deepcopy(ensemble)
    assert torch.equal(run(twin, x), logits), "copy: a deep copy gives other outputs"
    with torch.no_grad():
        for tensor in [*ensemble.parameters(), *ensemble.buffers()]:
            tensor.zero_()
    assert torch.equal(run(twin, x), logits), "copy: a deep copy changes with the original"


def check_double(make: Make, x: Tensor) -> None:
    """In double precision it computes in double precision, and what it computes is the same."""
    ensemble = lived(make, x)
    twin, wide = doubled(ensemble, x)
    logits = run(twin, wide)
    assert logits.dtype == torch.float64, f"double: the ensemble in double precision gives {logits.dtype}"
    assert apart(run(ensemble, x), logits) < 1e-4, "double: the ensemble in double precision gives other outputs"
    assert apart(logits.float(), logits) > 0, (
        "double: the values are float32 numbers, so something inside is not in double precision"
    )


def exported(module: nn.Module, arguments: tuple[Any, ...], shapes: Any, what: str) -> Any:
    """The program that ``torch.export`` makes of a module, with a dynamic batch."""
    try:
        return torch.export.export(module, arguments, dynamic_shapes=shapes).module()
    except Exception as error:  # its errors have no common type
        raise AssertionError(f"{what}: torch.export fails with {type(error).__name__}: {error}") from error


def check_export(make: Make, x: Tensor) -> None:
    """``torch.export`` with a dynamic batch gives what eager mode gives, for other batch sizes too."""
    ensemble = lived(make, x)
    program = exported(ensemble, (x[:3],), ({0: BATCH},), "export")
    for batch in (x[:3], x, torch.cat([x, x.flip(0)])):
        with torch.no_grad():
            difference = apart(program(batch), run(ensemble, batch))
        assert difference < CLOSE, f"export: differs from eager by {difference:.2g} for {len(batch)} rows"


def steps(ensemble: nn.Module, x: Tensor) -> Iterator[tuple[nn.Module, dict[str, Tensor], Tensor, dict[str, Tensor]]]:
    """Run the ensemble's own stages: per stage the module, what it reads, its logits, what it writes. What it declares must hold."""
    carry: dict[str, Tensor] = {}
    for stage in ensemble.stages():  # type: ignore[operator]
        name: Any = stage.name
        absent = [key for key in stage.reads if key not in carry]
        assert not absent, f"stages: {name!r} reads {absent}, which is not carried (there is {sorted(carry)})"
        read = {key: carry[key] for key in stage.reads}
        try:
            with torch.no_grad():
                logits, written = stage.eval()(x, read)
        except KeyError as error:
            raise AssertionError(f"stages: {name!r} reads {error}, which it does not declare") from error
        assert set(written) == set(stage.writes), f"stages: {name!r} writes {sorted(written)}, declared {sorted(stage.writes)}"
        for key, tensor in written.items():
            assert len(tensor) == len(x), f"stages: {name!r} writes {key!r} of shape {tuple(tensor.shape)}, not batch first"
        held = set(carry) | set(written)
        assert set(stage.drops) <= held, f"stages: {name!r} drops {sorted(set(stage.drops) - held)}, which is not carried"
        yield stage, read, logits, written
        carry = {key: tensor for key, tensor in {**carry, **written}.items() if key not in stage.drops}


def check_stages(make: Make, x: Tensor) -> None:
    """Stages in order give the rows of ``forward``, and read, write and drop what they declare."""
    ensemble = lived(make, x)
    logits = run(ensemble, x)
    if not hasattr(ensemble, "stages"):
        return
    names = [stage.name for stage in ensemble.stages()]  # type: ignore[operator]
    assert len(set(names)) == len(names) > 0, f"stages: names {names}, expected each once"
    assert all(isinstance(name, str) and name for name in names), f"stages: names {names}, expected text"
    parts = []
    for stage, _, part, _ in steps(ensemble, x):
        assert part.ndim == 3, f"stages: {stage.name!r} gives shape {tuple(part.shape)}, expected (members, B, C)"
        parts.append(part)
    together = torch.cat(parts)
    assert together.shape == logits.shape, f"stages: they give {tuple(together.shape)} together, forward {tuple(logits.shape)}"
    assert apart(together, logits) < CLOSE, "stages: in order they do not give the rows of forward"


def check_stage_export(make: Make, x: Tensor) -> None:
    """Every stage that carries something can be exported by itself, with a dynamic batch, and gives what eager mode gives."""
    ensemble = lived(make, x)
    for stage, read, logits, written in steps(ensemble, x) if hasattr(ensemble, "stages") else ():
        if not (stage.reads or stage.writes):  # a plain module: the whole ensemble's export says it all
            continue
        few = {key: tensor[:3] for key, tensor in read.items()}
        shapes = ({0: BATCH}, {key: {0: BATCH} for key in few})
        again, rewritten = exported(stage, (x[:3], few), shapes, "stage export")(x, read)
        assert apart(again, logits) < CLOSE, f"stage export: logits of {stage.name!r} differ from eager"
        for key, tensor in written.items():
            assert apart(rewritten[key], tensor) < CLOSE, f"stage export: {key!r} of {stage.name!r} differs from eager"


def check_cascade(make: Make, x: Tensor) -> None:
    """Through ``quorate.stages`` and :class:`Cascade`: open windows give the full ensemble, narrow ones what the stored Outputs say."""
    ensemble = lived(make, x)
    combine = getattr(ensemble, "combine", "probs")
    stages = quorate.ensemble.stages(ensemble)
    kind = quorate.ensemble.kind_of(ensemble)
    if kind != "logits":  # cascades decide classes; what is collected has to be right all the same
        outputs = quorate.ensemble.collect(ensemble, list(x), batch_size=3, costs=[1.0] * len(stages))
        assert outputs.kind == kind, f"cascade: collect says kind={outputs.kind!r}, the ensemble {kind!r}"
        collected = torch.from_numpy(np.concatenate([np.asarray(value) for value in outputs.values]))
        assert apart(collected, run(ensemble, x)) < CLOSE, "cascade: collected outputs are not those of forward"
        return
    full = Running("logits", combine)
    for member in run(ensemble, x).numpy():
        full.add_(member[None])
    outputs = quorate.ensemble.collect(ensemble, list(x), batch_size=3, costs=[1.0] * len(stages))
    assert outputs.combine == combine, f"cascade: collect says combine={outputs.combine!r}, the ensemble {combine!r}"
    assert np.abs(outputs.probs() - full.probs()).max() < CLOSE, "cascade: collected outputs are not those of forward"
    said = Cascade(stages, Policy.of(outputs), batch_size=3, chunk=5).predict(x)
    assert said.probs is not None
    assert np.abs(said.probs - full.probs()).max() < CLOSE, "cascade: with open windows it is not the full ensemble"
    assert (said.stage == len(stages) - 1).all(), "cascade: with open windows rows left before the last stage"
    policy = Policy.of(outputs, [(doubtful(outputs, k), None) for k in range(1, len(stages))])
    said, stored = Cascade(stages, policy, batch_size=3).predict(x), simulate(policy, outputs)
    assert (said.stage == stored.stage).all(), "cascade: rows leave at other stages than stored outputs say"
    assert stored.probs is not None
    assert np.abs(said.probs - stored.probs).max() < CLOSE, "cascade: rows that stay come to other results once others left"


def doubtful(outputs: Outputs, stop: int) -> float:
    """A limit of uncertainty after the first ``stop`` stages that parts the rows where they are furthest apart."""
    uncertainty = np.sort(1 - outputs.probs(stop).max(-1))
    widest = int(np.diff(uncertainty).argmax())
    return float(uncertainty[widest : widest + 2].mean())


CHECKS = (
    check_shape,
    check_rows,
    check_isolation,
    check_each,
    check_determinism,
    check_state_dict,
    check_copy,
    check_double,
    check_export,
    check_stages,
    check_stage_export,
    check_cascade,
)


def check_ensemble(make: Make, x: Tensor) -> None:
    """Every check, one after the other."""
    for check in CHECKS:
        check(make, x)
