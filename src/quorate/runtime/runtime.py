"""Runtime: a loaded bundle. Rows in, predictions out, by arrays alone.

A classification runs as a :class:`quorate.Cascade` under its policy, rows that are decided leave. Any prefix of the stages, of a
regression too, is had by :meth:`Runtime.prefix` and :meth:`Runtime.steps` (:class:`quorate.Anytime`: by number, cost or time), and
stages of parts of a sequence run while it arrives by :meth:`Runtime.stream`. Sources: Xia & Bouganis 2023 (arXiv 2303.08010), §3; Dennis
et al. 2023 (arXiv 2302.10093).

Raw inputs (B, *shape) must be of the manifest's dtype and finite; nothing is converted silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate._optional import one_line
from quorate.cascade.cascade import Cascade
from quorate.cascade.counters import Counters
from quorate.cascade.policy import Policy
from quorate.cascade.prediction import Prediction
from quorate.runtime.engines import Engine
from quorate.runtime.manifest import BundleError, Manifest
from quorate.runtime.session import OnnxStage

if TYPE_CHECKING:
    from quorate.cascade.anytime import Anytime
    from quorate.cascade.drift import Watch
    from quorate.cascade.step import Step
    from quorate.cascade.streaming import Arrival, Short, Streamed
    from quorate.outputs import Outputs
    from quorate.runtime.sparse.explaining import Explanation
    from quorate.runtime.sparse.tuning import Layout

SHOWN = 5  # rows that an error names


class Runtime:
    """A bundle that is ready; made by :func:`quorate.load_bundle`. Any number of threads may predict at once.

    Attributes:
        manifest: what the bundle says of itself.
        stages: callables, for an executor of one's own.
        names: the stages' names.
        classes: class names in order, or None.
        input: dtype and shape of one row of raw input.
        engines: what runs each stage, and why: sparse kernels, or ONNX Runtime.
        load_seconds: what loading took: ``files`` (reading, hashes, checks), ``sessions``, ``golden``.
        watch: the drift watch, or None.
    """

    def __init__(
        self,
        manifest: Manifest,
        stages: Sequence[OnnxStage],
        *,
        batch_size: int = 256,
        watch: bool = False,
        cap: float | None = None,
        memory: int | None = None,
        load_seconds: Mapping[str, float] | None = None,
        engines: Sequence[Engine] | None = None,
    ) -> None:
        self.manifest, self.stages, self.batch_size = manifest, list(stages), batch_size
        self.names = tuple(stage.name for stage in self.stages)
        self.classes, self.input = manifest.classes, manifest.input
        self.load_seconds = dict(load_seconds or {})
        given = [Engine(name, "dense", "nobody said") for name in self.names] if engines is None else engines
        self.engines: tuple[Engine, ...] = tuple(given)
        self._free = None in manifest.input.shape
        self._row: tuple[Any, ...] = tuple(manifest.input.shape)
        self._dtype = np.dtype(manifest.input.dtype)
        self._floating = self._dtype.kind == "f"
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: expected a whole number of rows, at least 1")
        self.watch: Watch | None = _watch(manifest) if watch else None
        self._cascade: Cascade | None = None
        if manifest.policy is not None:
            self._cascade = Cascade(self.stages, manifest.policy, batch_size, cap=cap, watch=self.watch, memory=memory)
        elif watch or cap is not None or memory is not None:
            raise ValueError("this bundle is a regression, without policy: watch, cap and memory are of cascades, leave them out")

    @property
    def policy(self) -> Policy | None:
        """The policy in use; None of a regression."""
        return None if self._cascade is None else self._cascade.policy

    def predict(self, x: ArrayLike) -> Prediction:
        """The cascade's predictions of x (B, *shape), B ≥ 0; in batches of ``batch_size``.

        Raises:
            ValueError: inputs of another dtype or shape, NaN or infinite ones (the rows are named), a stage that gives such outputs, or
                a regression.
        """
        return self._of("predict", "prefix").predict(self._checked(x))

    def predict_stream(self, batches: Iterable[ArrayLike]) -> Iterator[Prediction]:
        """The predictions of each batch (B, *shape) in turn; one batch at a time is held. Raises as :meth:`predict`."""
        cascade = self._of("predict_stream", "prefix")
        if hasattr(batches, "shape") or not isinstance(batches, Iterable):
            raise ValueError(
                f"batches is {type(batches).__name__}: expected an iterable of arrays (B, *shape); predict takes one array"
            )
        for batch in batches:
            yield cascade.predict(self._checked(batch))

    def prefix(
        self,
        x: ArrayLike,
        stages: int | None = None,
        *,
        macs: float | None = None,
        seconds: float | None = None,
        deadline: float | None = None,
    ) -> Step:
        """The answer of the longest prefix of stages within a limit, of all of them where none is given: no row leaves early.

        Limits as :meth:`quorate.Anytime.predict` has them. For a regression this gives values (and variances).
        """
        batch = None if seconds is not None or deadline is not None else self.batch_size
        return self.anytime.predict(self._checked(x), stages, macs=macs, seconds=seconds, deadline=deadline, batch_size=batch)

    def steps(self, x: ArrayLike) -> Iterator[Step]:
        """The answers of all prefixes in turn; a stage runs when its answer is asked for."""
        return self.anytime.steps(self._checked(x))

    def arrivals(self, chunks: Iterable[Any], *, short: Short = "refuse") -> Iterator[Arrival]:
        """What is known after each stage while a sequence arrives: :func:`quorate.cascade.streaming.arrivals`."""
        from quorate.cascade import streaming

        return streaming.arrivals(self._parts, self._arriving(chunks), self.policy, **self._members(), short=short)

    def stream(self, chunks: Iterable[Any], *, short: Short = "refuse") -> Streamed:
        """Predict while a sequence arrives, in chunks (B, …, n) of any n: :func:`quorate.cascade.streaming.stream`.

        Raises:
            ValueError: stages that are no parts of a sequence, and what that function refuses.
        """
        from quorate.cascade import streaming

        return streaming.stream(self._parts, self._arriving(chunks), self.policy, **self._members(), short=short)

    def outputs(self, x: ArrayLike, labels: ArrayLike | None = None, ids: ArrayLike | None = None) -> Outputs:
        """Every stage's members on all rows, as :func:`quorate.collect` gives them, to fit or certify on."""
        from quorate.runtime.collecting import collect

        manifest = self.manifest
        return collect(
            self.stages, self._checked(x), labels, kind=manifest.kind, combine=manifest.combine, ids=ids, classes=self.classes,
            kinds=None if self.policy is None else [stage.kind or manifest.kind for stage in self.policy.stages],
            costs=None if self.policy is None else [stage.cost for stage in self.policy.stages], batch_size=self.batch_size,
        )  # fmt: skip

    def warm_up(self, rows: Sequence[int] = (1,)) -> None:
        """Run every stage once on so many rows of zeros, so that the first real call is as fast as later ones; nothing is counted.

        Sparse stages make their kernels for single rows too, as a cascade leaves them any number.

        Raises:
            ValueError: rows below 1, or inputs of which a size is free.
        """
        if self._free:
            raise ValueError(
                f"inputs have free sizes {self._row}: there is no one shape to warm up for, call predict on real rows"
            )
        for count in rows:
            if count < 1:
                raise ValueError(f"rows={count}: expected at least 1")
            x = np.zeros((count, *self._row), self._dtype)
            carry: dict[str, Any] = {}
            for stage in self.stages:
                _, written = stage(x, {name: carry[name] for name in stage.reads})
                carry |= written
        for network in self._sparse().values():
            network.prepare((*rows, 1))

    def explain(self, layout: Layout = "latency") -> dict[str, Explanation]:
        """What each layer of the stages that run sparse does and takes, measured now: {stage: its explanation}.

        Args:
            layout: ``"latency"``, rows one by one, or ``"throughput"``, as many as a vector has lanes side by side.

        Raises:
            ValueError: another layout, or no stage that runs sparse; what stands against it is said.
        """
        from quorate.runtime.sparse.explaining import explain

        found = self._sparse()
        if not found:
            raise ValueError(f"no stage runs sparse: {'; '.join(f'{each.stage}: {each.why}' for each in self.engines)}")
        return {name: explain(network, layout) for name, network in found.items()}

    def _sparse(self) -> dict[str, Any]:
        """The networks that run sparse, by stage."""
        pairs = zip(self.stages, self.engines, strict=True)
        return {stage.name: stage.session for stage, engine in pairs if engine.name == "sparse"}

    @cached_property
    def anytime(self) -> Anytime:
        """The stages as a :class:`quorate.Anytime`, with the policy's costs, temperatures and uncertainty where there is one."""
        from quorate.cascade.anytime import Anytime

        manifest = self.manifest
        policy, kind = manifest.policy, manifest.kind
        if policy is None:
            return Anytime(self.stages, kind, manifest.combine)  # type: ignore[arg-type]
        rules = policy.stages
        join = "replace" if policy.combine == "last" else "mean"
        if any(rule.join != join for rule in rules[1:]) or any(rule.kind not in (None, policy.kind) for rule in rules):
            raise ValueError("the policy's stages replace each other or are of mixed kinds: prefixes are had by predict alone")
        return Anytime(
            self.stages, policy.kind, policy.combine, None if None not in [s.macs for s in self.stages] else [r.cost for r in rules],
            [rule.temperature for rule in rules], policy.uncertainty,
        )  # fmt: skip

    @property
    def counters(self) -> Counters:
        """What :meth:`predict` did so far, per stage."""
        return self._of("counters", "prefix").counters

    def reset_counters_(self) -> None:
        """Count from zero."""
        self._of("reset_counters_", "prefix").reset_counters_()

    def adjust_(self) -> Policy:
        """Move the windows to what was seen: :meth:`quorate.Cascade.adjust_`, of a bundle loaded with ``memory``."""
        return self._of("adjust_", "prefix").adjust_()

    def _of(self, what: str, instead: str) -> Cascade:
        if self._cascade is None:
            raise ValueError(f"this bundle is a regression, which has no {what}: use {instead}(x)")
        return self._cascade

    @property
    def _parts(self) -> Any:
        """The stages, of which the streaming itself finds out whether they are parts of a sequence."""
        return self.stages

    def _members(self) -> dict[str, Any]:
        return {} if self.policy is not None else {"kind": self.manifest.kind, "combine": self.manifest.combine}

    def _checked(self, x: ArrayLike) -> NDArray[Any]:
        """x as an array (B, *shape) of the bundle's dtype."""
        array = x if type(x) is np.ndarray else _array("x", x)
        if array.dtype != self._dtype:
            raise ValueError(f"x has dtype {array.dtype}: the bundle takes {self._dtype}, {self._remedy(array)}")
        if (array.shape[1:] != self._row and not (self._free and self.input.fits(array))) or not array.ndim:
            raise ValueError(f"x has shape {array.shape}: the bundle takes {_shown(self._row)}, rows first")
        if self._free and 0 in array.shape[1:]:
            raise ValueError(f"x has shape {array.shape}: the bundle takes {_shown(self._row)}, at least 1 of each but the rows")
        if self._floating and len(array) <= self.batch_size:
            if not np.isfinite(array).all():
                raise ValueError(_bad_rows(array, self.batch_size))
        elif self._floating:
            for start in range(0, len(array), self.batch_size):  # in the pieces in which it will be worked on
                if not np.isfinite(array[start : start + self.batch_size]).all():
                    raise ValueError(_bad_rows(array, self.batch_size))
        return array

    def _remedy(self, array: NDArray[Any]) -> str:
        if array.dtype.kind == "f" and self._floating:
            return f"convert it (x.astype(np.{self._dtype}))"
        return "give raw values in that type and in the range that the network was trained on"

    def _arriving(self, chunks: Iterable[Any]) -> Iterable[Any]:
        """The chunks, each checked for its dtype when it comes."""
        if hasattr(chunks, "shape") or not isinstance(chunks, Iterable):
            return chunks  # refused by the streaming itself, with the reason

        def checked() -> Iterator[Any]:
            for chunk in chunks:
                array = _array("a chunk", chunk)
                if array.dtype != self._dtype:
                    raise ValueError(f"a chunk has dtype {array.dtype}: the bundle takes {self._dtype}, {self._remedy(array)}")
                yield array

        return checked()


def _shown(shape: tuple[Any, ...]) -> str:
    return "(" + ", ".join(["B", *("any" if size is None else str(size) for size in shape)]) + ")"


def _array(what: str, x: Any) -> NDArray[Any]:
    """x as NumPy reads it. Raises ValueError for what it can't read, and for masked values, of which it would forget that they are."""
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(f"{what} has masked values: fill them in (x.filled(value)), or drop their rows")
    try:
        return np.asarray(x)
    except Exception as error:  # each framework has its own
        raise ValueError(
            f"{what} is {type(x).__name__}, which NumPy can't read ({one_line(error)}): expected a rectangular array, of a tensor "
            "x.detach().cpu().numpy()"
        ) from error


def _bad_rows(array: NDArray[Any], size: int) -> str:
    inner, bad = tuple(range(1, array.ndim)), list[int]()
    for start in range(0, len(array), size):
        bad += (start + np.flatnonzero(~np.isfinite(array[start : start + size]).all(inner))).tolist()
    more = f", … ({len(bad)} in all)" if len(bad) > SHOWN else ""
    return f"x has NaN or infinite values in rows {', '.join(map(str, bad[:SHOWN]))}{more}: mend or drop them"


def _watch(manifest: Manifest) -> Watch:
    from quorate.cascade.drift import Watch

    if manifest.watch is None:
        raise ValueError("this bundle holds no pass rates of validation rows to watch against: export it with validation outputs")
    try:
        return Watch.from_dict(dict(manifest.watch))
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"the bundle's watch is damaged ({error}): export it anew") from error
