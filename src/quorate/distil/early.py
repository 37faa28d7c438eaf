"""Recurrent students of the parts of a sequence: the state goes from one part to the next, so that no step is computed twice.

Source: Dennis et al. 2023 (arXiv 2302.10093), early prediction and the composition of §4. Student k owns the steps [start, stop) of
the sequence, its span. With the state s = h, of an LSTM (h, c), at which student k − 1 stopped,

    s_start = α · P(stopgrad s_{k−1}),    h_t, s_t = cell(h_{t−1}, x_t) for t in the span,    f_k(x) = head(pool(h_start … h_{stop−1}))

where P is the identity if layers and units are the same, else a linear map without bias of all layers' states at once (one of h, one of
c), orthogonal at first. The gate α is a learned scalar. It starts at 1, not at 0 as other links do: the state is what a student knows of
the past, and at α = 1 students of equal weights are one network run on. At α = 0 one starts as a student without link does.

Shapes, with B rows, C channels, H units, K layers, S = 2 for LSTM (h, then c) and 1 for GRU:

    part              (B, C, stop − start), raw
    "NAME.state"      (B, S · K, H), after the span's last step
    pool "last"       the last layer's h after the last step (B, H)
    pool "mean"       the mean of the last layer's h over the span
    pool "running"    their mean over all steps so far, m = (start · P(stopgrad m_{k−1}) + Σ h_t) / stop, carried as "NAME.mean" (B, H)
    head              (B, H) → (B, outputs)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quorate.cost.counting import evaluating
from quorate.models.shape import choice, real, sequence_shape, whole

Cell = Literal["lstm", "gru"]
Pool = Literal["last", "mean", "running"]
CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class PartStudent(nn.Module):
    """A recurrent student on the steps [start, stop) of a sequence, going on from the state of the student before.

    Args:
        shape: (channels, length) of a whole sequence.
        outputs: L, number of logits or values.
        span: (start, stop), 0 ≤ start < stop ≤ length.
        after: the student of the part before, which ends where this one starts; None for a student that starts from the zero state (the
            first, or one that is to know nothing of the past). Only its sizes and names are used; it is not held.
        cell: "lstm" or "gru".
        hidden: units H of each layer.
        layers: K, one upon the other.
        pool: what the head reads, see above.
        normalise: a module in front, (B, C, n) → (B, C', n) step by step, such as ``quorate.data.Normalise``; it is copied.
        name: of the student, and of what it writes.

    Attributes:
        name, reads, writes: what it reads of the carry and what it writes, see above.
        span: its steps.
        alpha: the gate, where there is a student before.

    Raises:
        ValueError: a span outside the sequence, a student before that ends elsewhere, has another cell or lacks the running mean; a
            ``normalise`` that looks at other steps than its own; sizes and options out of range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        span: tuple[int, int],
        after: PartStudent | None = None,
        *,
        cell: Cell = "lstm",
        hidden: int = 64,
        layers: int = 1,
        pool: Pool = "last",
        normalise: nn.Module | None = None,
        name: str = "part1",
    ) -> None:
        super().__init__()
        self.channels, self.length = sequence_shape(shape)
        self.span = _span(span, self.length)
        self.cell: str = choice("cell", cell, tuple(CELLS))
        self.pool: str = choice("pool", pool, ("last", "mean", "running"))
        self.hidden, self.layers, self.name = whole("hidden", hidden), whole("layers", layers), name
        if after is not None:
            _check_before(self, after)
        elif self.pool == "running" and self.span[0]:
            raise ValueError(
                f"{name} starts at step {self.span[0]}: expected after= for the running mean of the steps before, or pool='mean'"
            )
        self.reads = () if after is None else (_state(after), *((_mean(after),) if self.pool == "running" else ()))
        self.writes = (_state(self), *((_mean(self),) if self.pool == "running" else ()))
        self.normalise = nn.Identity() if normalise is None else copy.deepcopy(normalise)
        self.recurrent = CELLS[cell](
            _channels(self.normalise, self.channels, self.length), self.hidden, self.layers, batch_first=True
        )
        self.head = nn.Linear(self.hidden, whole("outputs", outputs))
        self.alpha = None if after is None else nn.Parameter(torch.ones(()))
        other = self if after is None else after
        same = (other.layers, other.hidden) == (self.layers, self.hidden)
        count = 0 if same else self._kinds
        self.project = nn.ModuleList(_map(other.layers * other.hidden, self.layers * self.hidden) for _ in range(count))
        needs = self.pool == "running" and other.hidden != self.hidden
        self.project_mean: nn.Module = _map(other.hidden, self.hidden) if needs else nn.Identity()

    def reset_parameters(self) -> None:
        """Beside what its layers have of their own: maps between states orthogonal, the gate at 1."""
        for part in (*self.project, self.project_mean):
            if isinstance(part, nn.Linear):
                nn.init.orthogonal_(part.weight)
        if self.alpha is not None:
            nn.init.ones_(self.alpha)

    @property
    def _kinds(self) -> int:
        return 2 if self.cell == "lstm" else 1

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Raw x (B, C, ≥ stop), of which only the span is looked at, and what is read → (outputs (B, L), what is written)."""
        if x.ndim != 3 or x.shape[1] != self.channels or x.shape[2] < self.span[1]:
            raise ValueError(
                f"x of shape {tuple(x.shape)}: {self.name} expected (B, {self.channels}, at least {self.span[1]} steps)"
            )
        return self.arrived(x[..., self.span[0] : self.span[1]], carry)

    def arrived(self, part: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The steps of the span alone, raw (B, C, stop − start), and what is read → (outputs (B, L), what is written)."""
        start, stop = self.span
        if part.ndim != 3 or tuple(part.shape[1:]) != (self.channels, stop - start):
            raise ValueError(
                f"a part of shape {tuple(part.shape)}: {self.name} expected (B, {self.channels}, {stop - start}), its span's steps"
            )
        steps = self.normalise(part.contiguous()).to(self.head.weight.dtype).transpose(1, 2)
        states, end = self.recurrent(steps, self._begin(carry))
        written = {self.writes[0]: (torch.cat(end) if self.cell == "lstm" else end).transpose(0, 1)}
        if self.pool == "last":
            features = states[:, -1]
        elif self.pool == "mean" or start == 0:
            features = states.mean(1)
        else:
            features = (start * self.project_mean(carry[self.reads[1]].detach()) + states.sum(1)) / stop
        if self.pool == "running":
            written[self.writes[1]] = features
        return self.head(features), written

    def _begin(self, carry: Mapping[str, Tensor]) -> Any:
        """The state to go on from, as the cell takes it: (K, B, H), of an LSTM a pair of them; None for zeros."""
        if self.alpha is None:
            return None
        parts = carry[self.reads[0]].detach().chunk(self._kinds, 1)
        if len(self.project):
            parts = tuple(
                p(part.flatten(1)).unflatten(1, (self.layers, self.hidden)) for p, part in zip(self.project, parts, strict=True)
            )
        begin = tuple((self.alpha * part).transpose(0, 1).contiguous() for part in parts)
        return begin if self.cell == "lstm" else begin[0]

    def extra_repr(self) -> str:
        return f"name={self.name!r}, span={self.span}, pool={self.pool!r}"


def early_students(
    shape: Sequence[int],
    outputs: int,
    parts: int | None = None,
    fractions: Sequence[float] | None = None,
    *,
    cell: Cell = "lstm",
    hidden: int | Sequence[int] = 64,
    layers: int = 1,
    pool: Pool = "last",
    normalise: nn.Module | None = None,
    seed: int = 0,
) -> list[PartStudent]:
    """Students ``part1``, ``part2``, … that cover the sequence without gap or overlap, each going on from the one before.

    Args:
        shape: (channels, length) of a whole sequence.
        outputs: L, number of logits or values of each student.
        parts: how many, as equal as whole steps allow; 4 if neither this nor ``fractions`` is given.
        fractions: instead, the shares of the sequence after which there is an answer, rising to 1.0. A part ends with the first step
            by which at least its share has come.
        hidden: units, or one number per part.
        cell, layers, pool, normalise: as of :class:`PartStudent`.
        seed: of the initial weights, which depend on nothing else; PyTorch's generators are left as they are.

    Raises:
        ValueError: both parts and fractions, more parts than steps, fractions that don't rise to 1.0 or leave a part without steps,
            another number of widths than parts; and as :class:`PartStudent`.
    """
    _, length = sequence_shape(shape)
    stops = _stops(length, parts, fractions)
    widths = list(hidden) if isinstance(hidden, Sequence) else [hidden] * len(stops)
    if len(widths) != len(stops):
        raise ValueError(f"hidden has {len(widths)} widths for {len(stops)} parts: expected one for all, or one per part")
    students: list[PartStudent] = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone, which is the one that is given back
        for k, (stop, width) in enumerate(zip(stops, widths, strict=True)):
            after = students[-1] if students else None
            span = (after.span[1] if after else 0, stop)
            options: dict[str, Any] = {"cell": cell, "layers": layers, "pool": pool, "normalise": normalise}
            students.append(PartStudent(shape, outputs, span, after, hidden=width, name=f"part{k + 1}", **options))
    return students


def from_teacher(
    teacher: nn.Module,
    example: Tensor,
    parts: int | None = None,
    fractions: Sequence[float] | None = None,
    *,
    width: float | Sequence[float] = 0.5,
    layers: int | None = None,
    pool: Pool = "last",
    normalise: nn.Module | None = None,
    seed: int = 0,
) -> list[PartStudent]:
    """Early students with the cell, layers and ``width`` × the units of a recurrent teacher, which is run once on ``example``.

    Args:
        teacher: a module (B, C, length) → (B, L), or member-first (M, B, L), that runs exactly one ``nn.LSTM`` or ``nn.GRU``, once.
        example: raw sequences (B, C, length).
        width: share of the teacher's units, or one per part; the product must be whole.
        layers: the teacher's by default.
        parts, fractions, pool, normalise, seed: as of :func:`early_students`. The students see raw steps: what the teacher does in
            front of its recurrence is not copied, give its normalisation as ``normalise``.

    Raises:
        ValueError: a teacher without, or with several, recurrent modules, with one that is bidirectional, projects its states, is not run
            or runs more than once; outputs of another shape; a width that gives no whole number of units; as :func:`early_students`.
    """
    if example.ndim != 3:
        raise ValueError(f"example of shape {tuple(example.shape)}: expected raw sequences (B, channels, length)")
    found = [(name, module) for name, module in teacher.named_modules() if isinstance(module, nn.RNNBase)]
    told = ", ".join(f"{name or 'itself'} ({type(module).__name__})" for name, module in found) or "none"
    if len(found) != 1 or not isinstance(found[0][1], nn.LSTM | nn.GRU):
        raise ValueError(
            f"the teacher's recurrent modules: {told}; expected exactly one nn.LSTM or nn.GRU, or use early_students(cell=, hidden=)"
        )
    module = found[0][1]
    if module.bidirectional:
        raise ValueError(
            f"the teacher's {told} is bidirectional: its states need the end of the sequence and can't be streamed, use early_students"
        )
    if module.proj_size:
        raise ValueError(
            f"the teacher's {told} projects its states to {module.proj_size}: say which width is meant, early_students(hidden=)"
        )
    calls: list[int] = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    try:
        with evaluating(teacher), torch.no_grad():
            out = teacher(example)
    finally:
        hook.remove()
    if len(calls) != 1:
        raise ValueError(f"the teacher runs its {told} {len(calls)} times in one pass: expected once, over the whole sequence")
    if not isinstance(out, Tensor) or out.ndim not in (2, 3) or out.shape[-2] != len(example):
        shown = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"the teacher returned {shown}: expected ({len(example)}, outputs), or member-first (M, {len(example)}, outputs)"
        )
    shares = width if isinstance(width, Sequence) else (width,) * len(_stops(example.shape[2], parts, fractions))
    cell: Cell = "lstm" if isinstance(module, nn.LSTM) else "gru"
    return early_students(
        tuple(example.shape[1:]), out.shape[-1], parts, fractions, cell=cell, hidden=[_units(module.hidden_size, s) for s in shares],
        layers=module.num_layers if layers is None else layers, pool=pool, normalise=normalise, seed=seed,
    )  # fmt: skip


def _state(student: PartStudent) -> str:
    return f"{student.name}.state"


def _mean(student: PartStudent) -> str:
    return f"{student.name}.mean"


def _map(here: int, there: int) -> nn.Linear:
    layer = nn.Linear(here, there, bias=False)
    nn.init.orthogonal_(layer.weight)
    return layer


def _span(span: tuple[int, int], length: int) -> tuple[int, int]:
    try:
        start, stop = span
        start, stop = whole("start", start, 0), whole("stop", stop)
    except (TypeError, ValueError):
        start, stop = 0, 0
    if not start < stop <= length:
        raise ValueError(f"span={span!r}: expected (start, stop) with 0 ≤ start < stop ≤ {length}, whole steps of the sequence")
    return start, stop


def _check_before(student: PartStudent, after: PartStudent) -> None:
    name, other = student.name, after.name
    if after.span[1] != student.span[0]:
        raise ValueError(
            f"{name} starts at step {student.span[0]}, {other} ends at {after.span[1]}: expected spans that follow each other"
        )
    if after.cell != student.cell:
        raise ValueError(
            f"{name} has cell {student.cell!r}, {other} {after.cell!r}: expected one kind of cell, states of two don't fit"
        )
    if name == other:
        raise ValueError(f"two students are called {name!r}: expected different names")
    if student.pool == "running" and after.pool != "running":
        raise ValueError(f"{name} goes on from a running mean, {other} has pool={after.pool!r}: expected pool='running' in both")


def _channels(normalise: nn.Module, channels: int, length: int) -> int:
    """Channels behind the module in front, which has to act on each step for itself: tried on noise."""
    noise = torch.randn(2, channels, length, generator=torch.Generator().manual_seed(0))
    first = next(normalise.parameters(), next(normalise.buffers(), noise))
    noise, cut = noise.to(first.device), length // 2
    try:
        with evaluating(normalise), torch.no_grad():
            together, *pieces = (normalise(part) for part in (noise, noise[..., :cut], noise[..., cut:]) if part.shape[-1])
    except RuntimeError as error:
        told = str(error).splitlines()[0]
        raise ValueError(f"normalise does not run on sequences of {channels} channels and on parts of them: {told}") from error
    shown = tuple(together.shape) if isinstance(together, Tensor) else type(together).__name__
    if not isinstance(together, Tensor) or together.ndim != 3 or (together.shape[0], together.shape[2]) != (2, length):
        raise ValueError(f"normalise gives {shown} for sequences (2, {channels}, {length}): expected (2, channels, {length})")
    apart = torch.cat(pieces, -1)
    if apart.shape != together.shape or not torch.allclose(apart, together, rtol=1e-4, atol=1e-5):
        raise ValueError(
            "normalise gives parts of a sequence other values than the whole: expected a module that acts on each step for itself"
        )
    return int(together.shape[1])


def _stops(length: int, parts: int | None, fractions: Sequence[float] | None) -> list[int]:
    """Where each part ends."""
    if fractions is None:
        count = whole("parts", 4 if parts is None else parts)
        if count > length:
            raise ValueError(f"parts={count} of a sequence of {length} steps: expected at most one part per step")
        return [length * k // count for k in range(1, count + 1)]
    if parts is not None:
        raise ValueError(f"parts={parts} and fractions={tuple(fractions)}: expected one of them")
    shares = [real(share) for share in fractions]
    if not shares or shares[-1] != 1 or not all(a < b for a, b in zip([0.0, *shares], shares, strict=False)):
        raise ValueError(f"fractions={tuple(fractions)}: expected shares > 0 that rise to 1.0, such as (0.25, 0.5, 1.0)")
    stops = [math.ceil(round(share * length, 9)) for share in shares]
    if len(set(stops)) != len(stops):
        raise ValueError(
            f"fractions={tuple(fractions)} of {length} steps end at steps {stops}: expected at least one step in every part"
        )
    return stops


def _units(hidden: int, share: float) -> int:
    product = real(share) * hidden
    if not (math.isfinite(product) and product > 0):
        raise ValueError(f"width={share!r}: expected a share > 0 of the teacher's {hidden} units")
    units = round(product)
    if not math.isclose(product, units, rel_tol=1e-9):
        low, high = max(1, math.floor(product)), math.ceil(product)
        raise ValueError(
            f"width={share!r} of {hidden} units is {product:g}: expected a whole number, nearest {low}/{hidden} or {high}/{hidden}"
        )
    return units
