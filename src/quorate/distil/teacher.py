"""The teacher g: what the students are to approach, one frozen function of raw inputs, whatever it is made of.

Source: Dennis et al. 2023 (arXiv 2302.10093), where g is any model whose outputs can be had. An ensemble is a teacher by its mean. Of
members z_m (B, C), with p_m = softmax(z_m), and for regressions μ_m, σ_m² (Lakshminarayanan et al. 2017, arXiv 1612.01474, §2.4):

    logits, combine "probs" or "last"       g = log (1/M) Σ p_m           (the log of a probability is a logit of it)
    logits, combine "logits"                g = (1/M) Σ z_m
    values                                  g = (1/M) Σ z_m
    gaussian, combine "probs" or "last"     g = (μ*, log σ*²),    μ* = (1/M) Σ μ_m,    σ*² = (1/M) Σ (σ_m² + (μ_m − μ*)²)
    gaussian, combine "logits"              g = (1/M) Σ (μ_m, log σ_m²)

``"last"`` takes the members of the last stage alone. A Gaussian teacher is distilled as its 2D values.

Shapes: x (B, *shape) raw; members (M, B, C); outputs (B, L) float32, L = C classes, D values or 2D.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quorate.combination import COMBINES, SUM_TOLERANCE, Combine
from quorate.distil.onnx_teacher import OnnxModel
from quorate.distil.teacher_sources import Function, Given, Network, Stored, Transform, declared_combine, declared_kind
from quorate.ensemble import Rows
from quorate.outputs import Outputs

Kind = Literal["logits", "values", "gaussian"]
Advance = Callable[[int, int], None]
GIVEN: tuple[Given, ...] = ("logits", "probs", "values", "gaussian")
NAMED = 5  # ids that an error shows


def joined(members: Tensor, kind: Given, combine: Combine) -> Tensor:
    """One output (B, L) of members (M, B, L), by the table above; of probabilities the log of their mean."""
    if kind == "probs":
        return members.mean(0).log()
    if kind == "values" or combine == "logits":
        return members.mean(0)
    if kind == "logits":
        return members.log_softmax(-1).logsumexp(0) - math.log(len(members))
    means, log_variances = members.chunk(2, -1)
    mean = means.mean(0)
    spread = torch.logaddexp(log_variances, 2 * (means - mean).abs().log())
    return torch.cat([mean, spread.logsumexp(0) - math.log(len(members))], -1)


class Source(Protocol):
    """What a teacher is made of: a name for errors, whether it takes new inputs, and its part of the identity."""

    name: str
    online: bool

    def identity(self) -> dict[str, Any]: ...
    def __call__(self, x: Tensor, /) -> Any: ...


class Teacher:
    """A frozen teacher. Build it with :meth:`of`.

    It is never changed: no gradients, no training mode, and buffers that its forward pass writes are put back.

    Attributes:
        name: for errors and logs.
        kind: what its outputs are: ``"logits"``, ``"values"`` or ``"gaussian"``.
        combine: how members, if it has any, become one output; None where it must have none.
        online: whether it can be asked about inputs that are in no data set, such as augmented views.
        macs: multiply-adds per input; None where nobody said or counted them.
        width: L; None until it is known.
    """

    def __init__(
        self,
        source: Source,
        kind: Given,
        combine: Combine | None,
        *,
        asked: bool = False,
        macs: float | None = None,
        expect: int | None = None,
    ) -> None:
        self.source, self.name, self.online = source, source.name, source.online
        self.kind: Kind = "logits" if kind == "probs" else kind
        self.combine, self.macs = combine, macs
        self.width: int | None = None
        self._given, self._asked, self._expect = kind, asked, expect
        if kind == "probs" and combine == "logits":
            raise ValueError(f"teacher {self.name!r} gives probabilities, which have no mean logits: use combine='probs'")
        if isinstance(source, Stored):
            self._check_width(source.width)

    @classmethod
    def of(
        cls,
        source: Any,
        *,
        kind: Given | None = None,
        combine: Combine | None = None,
        name: str | None = None,
        macs: float | None = None,
        example: Tensor | None = None,
        expect: int | None = None,
        transform: Transform | None = None,
        output: str | None = None,
        providers: Sequence[str] | None = None,
    ) -> Teacher:
        """The teacher that something is; which sort of thing it is, its type says (of a path, the suffix).

        Args:
            source: an ``nn.Module`` in eval mode, x → (B, L) or by the contract of :mod:`quorate.ensemble` (M, B, C); any callable x →
                tensor or array (B, L); :class:`quorate.Outputs` or the path of a ``.safetensors`` file of them, read by row ids; the path
                of an ``.onnx`` file with one input, run by ONNX Runtime. A Teacher is taken as it is.
            kind: what it gives: ``"logits"``, ``"probs"`` (positive probabilities, their logs are taken as logits), ``"values"`` (B, D) or
                ``"gaussian"`` (B, 2D). Default: what a module or Outputs declare, else logits.
            combine: how members (M, B, C) become one. Default: what a module or Outputs declare, for a module else ``"probs"``. For
                functions and ONNX files it says that they give members; ``"last"`` needs stages.
            name: for errors. A function's identity is its name, so that it should be given for one.
            macs: multiply-adds per input, if known. Default: counted where there is a module and an example.
            example: a few raw inputs (B, *shape) to count a module on.
            expect: L, the number of outputs there have to be.
            transform: from raw inputs to the source's own, batch first; not for stored outputs.
            output: of an ONNX file with several, the name of the output.
            providers: of ONNX Runtime. Default: the CPU.

        Raises:
            ValueError: a source of another type, a module in training mode, options that it cannot have, another width than expected, an
                unreadable file.
            ImportError: an ONNX file where ONNX Runtime is not installed.
        """
        for option, value, known in (("kind", kind, GIVEN), ("combine", combine, COMBINES)):
            if value is not None and value not in known:
                raise ValueError(f"teacher's {option}={value!r}: expected one of {', '.join(known)}")
        if macs is not None and not (math.isfinite(macs) and macs > 0):
            raise ValueError(f"teacher's macs={macs}: expected multiply-adds per input, a finite number > 0")
        asked = {
            "kind": kind, "combine": combine, "name": name, "macs": macs, "example": example, "transform": transform,
            "output": output, "providers": providers,
        }  # fmt: skip
        if isinstance(source, Teacher):
            _refuse_options(asked, "a Teacher already", tuple(asked))
            return source._expecting(expect)
        if isinstance(source, str | Path):
            if Path(source).suffix == ".onnx":
                _check_stages(combine)
                model = OnnxModel(Path(source), output=output, providers=providers, transform=transform, name=name)
                return cls(model, kind or "logits", combine, asked=combine is not None, macs=macs, expect=expect)
            if Path(source).suffix != ".safetensors":
                raise ValueError(f"teacher {str(source)!r}: expected a .safetensors file of Outputs, or an .onnx file")
            name, source = name or Path(source).name, Outputs.load(source)
        _refuse_options(asked, "no ONNX file", ("output", "providers"))
        if isinstance(source, Outputs):
            _refuse_options(asked, "stored outputs", ("transform",))
            stored = Stored(source, combine or source.combine, name or "stored outputs")
            return cls(stored, declared_kind(source, kind, stored.name), stored.combine, asked=True, macs=macs, expect=expect)
        owner = source if isinstance(source, nn.Module) else getattr(source, "__self__", None)
        if isinstance(owner, nn.Module):
            network = Network(owner, None if source is owner else source, combine, transform, name)
            given = declared_kind(owner, kind, network.name)
            how = combine or declared_combine(owner)
            cost = network.count(example) if macs is None and example is not None else macs
            return cls(network, given, how, asked=combine is not None, macs=cost, expect=expect)
        if callable(source):
            _check_stages(combine)
            function = Function(source, transform, name)
            return cls(function, kind or "logits", combine, asked=combine is not None, macs=macs, expect=expect)
        raise ValueError(
            f"teacher of type {type(source).__name__}: expected a module, a function x → (B, L), Outputs, or the path of an .onnx or "
            ".safetensors file; of an estimator pass its function, such as predict_proba with kind='probs'"
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its outputs, as JSON values: hashes of tensors and structure, of a file or of values; a function's name."""
        return {"kind": self._given, "combine": self.combine, **self.source.identity()}

    def check_online(self, what: str = "new inputs, such as augmented views") -> None:
        """A ValueError unless it can be asked about ``what``."""
        if not self.online:
            raise ValueError(
                f"teacher {self.name!r} is stored outputs and knows no {what}: give the model itself, or train without augmentation"
            )

    def near(self, device: torch.device) -> Teacher:
        """The same with a module on this device, a copy where it is on another one; any other teacher is where it always is."""
        if not isinstance(self.source, Network) or (source := self.source.near(device)) is self.source:
            return self
        other = copy.copy(self)
        other.source = source
        return other

    def outputs(self, x: Tensor, ids: NDArray[Any] | None = None) -> Tensor:
        """Outputs (B, L) of raw inputs x (B, *shape), on their device, without a gradient and outside of autocast.

        ``ids`` (B,) name the rows in errors; by default they are 0 … B−1.

        Raises:
            ValueError: no rows, a teacher in training mode or of stored outputs, outputs of another shape or width, NaN or infinity.
        """
        self.check_online()
        if not isinstance(x, Tensor) or x.ndim < 2 or not len(x):
            found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"teacher {self.name!r} got x of {found}: expected a tensor (B, *shape) with at least one row")
        kind = x.device.type
        plain = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with torch.no_grad(), plain:
            return self._checked(self.source(x), len(x), ids).to(x.device)

    def on(
        self,
        split: Rows,
        batch_size: int = 256,
        progress: Advance | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Outputs (N, L) on all rows of a split, batch by batch; labels are not read, of stored outputs not even inputs.

        Args:
            split: a :class:`quorate.data.Split` or what has its ``ids`` and ``batch(rows)``.
            batch_size: rows at a time.
            progress: called with (rows done, N) after every batch.
            out: where to write, (N, L) float32, such as a memory map. Default: a new array.

        Raises:
            ValueError: as :meth:`outputs`, with the ids of the rows; ids that stored outputs lack; ``out`` of another shape or dtype.
        """
        if not isinstance(split, Rows):
            raise ValueError(f"split of type {type(split).__name__}: expected a quorate.data.Split, with ids and batch(rows)")
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: expected an integer of at least 1")
        total, ids = len(split), np.asarray(split.ids)
        if not total:
            raise ValueError("the split has no rows: expected at least one")
        at = self.source.find(ids) if isinstance(self.source, Stored) else None
        for start in range(0, total, batch_size):
            rows = np.arange(start, min(start + batch_size, total))
            if at is not None and isinstance(self.source, Stored):
                block = self._checked(self.source.take(at[rows]), len(rows), ids[rows])
            else:
                block = self.outputs(split.batch(rows)[0], ids[rows])
            if out is None:
                out = np.empty((total, block.shape[1]), np.float32)
            elif not start:
                _check_out(out, (total, block.shape[1]))
            out[rows] = block.cpu().numpy()
            if progress is not None:
                progress(int(rows[-1]) + 1, total)
        assert out is not None
        return out

    def _expecting(self, expect: int | None) -> Teacher:
        if expect is None or expect == self._expect:
            return self
        other = copy.copy(self)
        other._expect = expect
        if self.width is not None:
            other._check_width(self.width)
        return other

    def _checked(self, raw: Any, rows: int, ids: NDArray[Any] | None) -> Tensor:
        """What the source gave, as finite (rows, L) float32."""
        array = torch.from_numpy(np.array(raw, raw.dtype.newbyteorder("="))) if _is_float(raw) else raw
        if not isinstance(array, Tensor) or not array.is_floating_point():
            found = f"{type(raw).__name__} of {raw.dtype}" if isinstance(raw, Tensor | np.ndarray) else type(raw).__name__
            raise ValueError(
                f"teacher {self.name!r} returned {found}: expected one tensor or array of floats (B, L), wrap it in a function"
            )
        shape = tuple(array.shape)
        if array.ndim not in (2, 3) or shape[-2] != rows or 0 in shape:
            raise ValueError(
                f"teacher {self.name!r} returned shape {shape} for {rows} rows: expected ({rows}, L), or (members, {rows}, L)"
            )
        if array.ndim == 3 and self.combine is None:
            raise ValueError(f"teacher {self.name!r} returned shape {shape}: say how members become one, such as combine='probs'")
        if array.ndim == 2 and self._asked:
            raise ValueError(
                f"teacher {self.name!r} returned shape {shape}, no members (M, {rows}, L): leave combine={self.combine!r} out"
            )
        self._check_width(shape[-1])
        wide = array if array.dtype == torch.float64 else array.float()
        if self._given == "probs":
            probs = wide if wide.ndim == 3 else wide[None]
            off = (probs < 0).any(-1) | ~((probs.sum(-1) - 1).abs() <= SUM_TOLERANCE)
            self._refuse(off.any(0), ids, "no probabilities (negative, NaN, or of another sum than 1)", "is kind='logits' meant?")
        if wide.ndim == 3 and self.combine is not None:
            wide = joined(wide, self._given, self.combine)
        elif self._given == "probs":
            wide = wide.log()
        wide = wide.float()
        zero = self._given == "probs"
        what = "a probability of 0, whose log is infinite" if zero else "NaN or infinite values"
        self._refuse(~wide.isfinite().all(-1), ids, what, "give its logits" if zero else "mend the teacher or drop these rows")
        return wide

    def _refuse(self, bad: Tensor, ids: NDArray[Any] | None, what: str, remedy: str) -> None:
        """A ValueError that names the rows marked in ``bad`` (B,), if there are any."""
        if not bad.any():
            return
        at = np.flatnonzero(bad.cpu().numpy())
        known = ("rows", at) if ids is None else ("the rows with ids", np.asarray(ids)[at])
        shown = ", ".join(str(row) for row in known[1][:NAMED].tolist()) + (f", … ({len(at)})" if len(at) > NAMED else "")
        raise ValueError(f"teacher {self.name!r} gives {what} in {known[0]} {shown}: {remedy}")

    def _check_width(self, width: int) -> None:
        for expected in (self._expect, self.width):
            if expected not in (None, width):
                raise ValueError(
                    f"teacher {self.name!r} gives {width} outputs per row: expected {expected}, as the students and the data have"
                )
        if self.kind == "gaussian" and width % 2:
            raise ValueError(
                f"teacher {self.name!r} gives {width} outputs per row: a gaussian has 2·D, means and then log-variances"
            )
        self.width = width


def _is_float(array: Any) -> bool:
    """Whether it is a NumPy array that PyTorch can hold as floats."""
    return isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.dtype.itemsize <= 8


def _refuse_options(asked: Mapping[str, Any], what: str, names: Sequence[str]) -> None:
    """A ValueError where an option was given that this source can't have."""
    given = [name for name in names if asked[name] is not None]
    if given:
        raise ValueError(f"the teacher is {what}, which has no {', '.join(f'{name}=' for name in given)}: leave it out")


def _check_stages(combine: Combine | None) -> None:
    if combine == "last":
        raise ValueError(
            "combine='last' takes the last stage's members, but this teacher has no stages: expected 'probs' or 'logits'"
        )


def _check_out(out: NDArray[np.float32], shape: tuple[int, int]) -> None:
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != np.float32 or not out.flags.writeable:
        found = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out is {found}: expected a writable float32 array of shape {shape}")
