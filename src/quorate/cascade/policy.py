"""Policy: what a cascade does, as plain data. JSON in and out, nothing executable.

Source: Xia & Bouganis 2023 (arXiv 2303.08010), §3. After stage k a row goes on iff low ≤ U_k ≤ high (closed: a tie goes on);
decided at stage k, it is accepted iff U_k ≤ τ_k.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade import target as targets
from quorate.cascade.uncertainty import check_temperature, fresh
from quorate.combination import Combine, Kind
from quorate.files import read_json, write_text
from quorate.outputs import Outputs

FORMAT = "quorate-policy/1"
Join = Literal["mean", "replace"]
Window = tuple[float | None, float | None]


@dataclass(frozen=True)
class StagePolicy:
    """What happens after one stage.

    Attributes:
        name: the stage's name in its pool.
        join: ``"mean"`` with the earlier stages' members, or ``"replace"`` them.
        temperature: T > 0 on the joined output.
        window: (low, high) of uncertainty in which a row goes on; a ``None`` end is open; ``None`` altogether: nobody goes on.
        tau: a row decided here with a larger uncertainty is rejected; ``None``: all are accepted.
        cost: cost of this stage per row, in MACs (or the one unit of all stages).
        centre, width: the uncertainty that the window was put around and its half width as a share of rows, if it was made so;
            under shift they stay and the window moves (:meth:`Policy.adjusted`).
        kind: ``"logits"`` for a stage that gives logits in a policy over probabilities, which it is softmaxed to; ``None``: the policy's.
        rate, seed: a baseline instead of a window: this share of the rows goes on, drawn by their numbers in the caller's order.
    """

    name: str
    join: Join = "mean"
    temperature: float = 1.0
    window: Window | None = None
    tau: float | None = None
    cost: float = 0.0
    centre: float | None = None
    width: float | None = None
    kind: Literal["logits", "probs"] | None = None
    rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"stage name {self.name!r}: expected text, the stage's name in its pool")
        if self.join not in ("mean", "replace"):
            raise ValueError(f"stage {self.name!r}: join={self.join!r}, expected 'mean' or 'replace'")
        temperature, cost = self._finite("temperature", "a finite number > 0"), self._finite("cost", "a finite number ≥ 0")
        if temperature <= 0:
            raise ValueError(f"stage {self.name!r}: temperature={temperature}, expected a finite number > 0")
        if cost < 0:
            raise ValueError(f"stage {self.name!r}: cost={cost}, expected a finite number ≥ 0")
        tau = None if self.tau is None else self._finite("tau", "a finite number, or None to accept all")
        centre = None if self.centre is None else self._finite("centre", "a finite number, or None")
        width = None if self.width is None else self._finite("width", "a finite number, or None")
        rate = None if self.rate is None else self._finite("rate", "a share of the rows in [0, 1], or None")
        checked = {
            "temperature": temperature, "cost": cost, "tau": tau, "window": self._window(), "centre": centre, "width": width,
            "rate": rate,
        }  # fmt: skip
        if rate is not None and (not 0 <= rate <= 1 or self.window is not None):
            raise ValueError(
                f"stage {self.name!r}: rate={rate}, window={self.window}: expected a share in [0, 1] and no window beside it"
            )
        if self.kind not in (None, "logits", "probs"):
            raise ValueError(f"stage {self.name!r}: kind={self.kind!r}, expected 'logits', 'probs', or None for the policy's")
        if type(self.seed) is bool or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"stage {self.name!r}: seed={self.seed!r}, expected an integer ≥ 0")
        for key, value in checked.items():
            object.__setattr__(self, key, value)

    def _window(self) -> Window | None:
        if self.window is None:
            return None
        expected = "(low, high), each a finite number, or None for an open end"
        if not isinstance(self.window, tuple | list) or len(self.window) != 2:
            raise ValueError(f"stage {self.name!r}: window={self.window!r}, expected {expected}")
        low, high = (None if end is None else self._finite("window", expected, end) for end in self.window)
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"stage {self.name!r}: window={self.window} has low > high, expected low ≤ high or None (nobody goes on)"
            )
        return low, high

    def _finite(self, key: str, expected: str, value: Any = None) -> float:
        """A field as a finite Python float (NumPy's numbers too, so that JSON can hold them)."""
        value = getattr(self, key) if value is None else value
        if type(value) is bool or not isinstance(value, numbers.Real):
            number = math.nan
        else:
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"stage {self.name!r}: {key}={getattr(self, key)!r}, expected {expected}")
        return number

    def goes_on(self, uncertainty: ArrayLike) -> NDArray[np.bool_]:
        """Which rows go on (B,): low ≤ U ≤ high."""
        u = np.asarray(uncertainty)
        if self.window is None:
            return np.zeros(u.shape, bool)
        low, high = self.window
        return np.asarray((u >= (-np.inf if low is None else low)) & (u <= (np.inf if high is None else high)))

    def accepts(self, uncertainty: ArrayLike) -> NDArray[np.bool_]:
        """Which rows decided here are accepted (B,): U ≤ τ."""
        return np.asarray(np.asarray(uncertainty) <= (np.inf if self.tau is None else self.tau))


@dataclass(frozen=True)
class Policy:
    """Uncertainty, kind and combination of the members, and one :class:`StagePolicy` per stage in order.

    ``uncertainty`` is a name of :mod:`quorate.cascade.uncertainty`; ``target`` is what it was fitted for, if anything;
    ``certificate`` is the guarantee it was given, if any.

    ``sequence`` holds vectors (τ_1 … τ_K) in the order in which a certification tests them, fixed on validation data: each accepts all
    that the one before accepts. Which one is in use, the stages' τ say.
    """

    stages: tuple[StagePolicy, ...]
    uncertainty: str = "msp"
    kind: Kind = "logits"
    combine: Combine = "probs"
    target: str | None = None
    certificate: dict[str, Any] | None = None
    sequence: tuple[tuple[float | None, ...], ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        fresh(self.uncertainty, self.kind, self.combine)  # a measure, kind and combination that go together
        if not self.stages or not all(isinstance(stage, StagePolicy) for stage in self.stages):
            raise ValueError("a policy needs at least one stage, each a StagePolicy")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names {names}: expected each once, a stage can't run twice")
        last = self.stages[-1]
        beyond = {key: value for key, value in (("window", last.window), ("rate", last.rate)) if value is not None}
        if beyond:
            key, value = next(iter(beyond.items()))
            raise ValueError(f"the last stage {last.name!r} has {key}={value}: expected None, nothing comes after it")
        for stage in self.stages:
            try:
                check_temperature(self.uncertainty, self.kind, stage.temperature)
            except ValueError as error:
                raise ValueError(f"stage {stage.name!r}: {error}") from error
            if stage.kind not in (None, self.kind) and (self.kind, stage.kind) != ("probs", "logits"):
                raise ValueError(
                    f"stage {stage.name!r} is of kind {stage.kind!r} in a policy over {self.kind!r}: only logits can be made probabilities"
                )
            if self.combine == "last" and stage.join != "replace":
                raise ValueError(f"stage {stage.name!r}: combine='last' counts one stage alone, expected join='replace'")
        if self.target is not None:
            targets.parse(self.target)
        if self.certificate is not None and not isinstance(self.certificate, dict):
            raise ValueError(f"certificate is {type(self.certificate).__name__}: expected a dict, or None")
        if self.sequence is not None:
            object.__setattr__(self, "sequence", _sequence(self.sequence, len(self.stages)))

    @classmethod
    def of(
        cls,
        outputs: Outputs,
        windows: Sequence[Window | None] | NDArray = (),
        taus: Sequence[float | None] | NDArray = (),
        uncertainty: str = "msp",
        target: str | None = None,
        temperatures: Sequence[float] | NDArray = (),
    ) -> Policy:
        """A policy over all stages of ``outputs`` with given windows (one per stage but the last), τ and T (one per stage).

        Without windows nobody leaves before the last stage: the full ensemble. Without ``taus`` all are accepted. Without
        ``temperatures`` (:func:`quorate.cascade.temperature.fit_temperature` fits them) they are 1. Arrays are taken too. Raises
        ValueError for other numbers of them than there are stages, and for what :class:`StagePolicy` and the policy refuse.
        """
        count = outputs.stages
        windows = _listed("windows", windows) or [(None, None)] * (count - 1)
        taus = _listed("taus", taus) or [None] * count
        temperatures = _listed("temperatures", temperatures) or [1.0] * count
        if len(windows) != count - 1 or len(taus) != count:
            raise ValueError(f"{len(windows)} windows and {len(taus)} taus for {count} stages: expected {count - 1} and {count}")
        if len(temperatures) != count:
            raise ValueError(f"{len(temperatures)} temperatures for {count} stages: expected {count}")
        join: Join = "replace" if outputs.combine == "last" else "mean"
        costs = outputs.costs or (0.0,) * count
        stages = [
            StagePolicy(name, join, temperature, window, tau, cost)
            for name, temperature, window, tau, cost in zip(
                outputs.names, temperatures, [*windows, None], taus, costs, strict=True
            )
        ]
        return cls(tuple(stages), uncertainty, outputs.kind, outputs.combine, target)

    @classmethod
    def fit(
        cls,
        val: Outputs,
        *,
        target: str,
        window: Literal["paper", "optimal", "single", "agreement", "random"] = "paper",
        width: float = 0.10,
        deviation: float | None = None,
        budget: float | None = None,
        max_cost: float | None = None,
        cal: Outputs | None = None,
        ood: Mapping[str, Outputs] | None = None,
        cal_ood: Mapping[str, Outputs] | None = None,
        conformal: float | None = None,
        delta: float = 0.05,
        uncertainty: str | None = None,
        tau: Literal["own", "shared"] = "own",
        temperature: Literal["none", "fit"] = "none",
        error_costs: ArrayLike | None = None,
        limits: Mapping[int, float] | None = None,
        beta: float = 1.0,
        alpha: float | None = None,
        seed: int = 0,
    ) -> Policy:
        """A policy for a target, fitted on validation Outputs of two or more stages and certified on calibration Outputs if given.

        Args:
            val: validation Outputs; labelled, but for ``fpr@tpr``.
            target: see :mod:`quorate.cascade.target`.
            window: the rule, see :mod:`quorate.cascade.fitting`.
            width: half width of the paper's window as a share of the rows.
            deviation: for the other rules: the share of rows that may be decided otherwise than by the full ensemble.
            budget: mean cost per row at most, as a share in (0, 1] of what all stages cost together; the best target within it.
            max_cost: the same in the unit of the stages' costs.
            cal: calibration Outputs, drawn as what will come and used for nothing else; the policy gets a certificate and the
                thresholds that it vouches for (:func:`quorate.cascade.guarantee.certify_policy`). For nll there is none.
            ood: OOD sets by name, for ``fpr@tpr`` and, with a selective target, SCOD; ``cal_ood`` the same for the calibration.
            conformal: α: the narrowest windows whose expected deviation is at most α by conformal risk control on ``cal``; optimal only.
            delta: allowed probability, over the draw of ``cal``, that the certificate is wrong.
            uncertainty: default energy for ``fpr@tpr`` of logits, variation_ratio for agreement, else msp.
            tau: ``"own"`` per stage, or the ``"shared"`` τ of the paper (its two-stage window only).
            temperature: ``"fit"`` gives each stage the T of least NLL before anything else.
            error_costs: (C,) per true class or (C, C) per (true, said) class, instead of 1 per error.
            limits: {class: most risk among the rows accepted with this label}, for selective targets.
            beta, alpha: of SCOD: the cost of an accepted OOD row, the share of ID in the mix.
            seed: of random rows, and of the sample that windows are searched on.

        Raises:
            ValueError: fewer than two stages, a target that no threshold reaches, arguments that play no part or are out of range, missing
                labels, costs or OOD rows, a budget below the first stage's cost, or a temperature where it does not act.
        """
        from quorate.cascade import choosing

        aim = choosing.aim_of(
            val, target, budget=budget, max_cost=max_cost, rows=getattr(cal, "n", None), width=width, deviation=deviation,
            ood=ood, error_costs=error_costs, limits=limits, beta=beta, alpha=alpha, delta=delta, seed=seed,
        )  # fmt: skip
        how = choosing.How(window, uncertainty, tau, temperature, conformal)
        return choosing.choose(val, aim, how, cal, cal_ood)

    def adjusted(self, outputs: Outputs) -> Policy:
        """The same policy with its windows moved to unlabelled, shifted ``outputs``: :func:`quorate.cascade.adjusting.adjust`."""
        from quorate.cascade import adjusting

        return adjusting.adjust(self, outputs)

    def check_pool(self, outputs: Outputs) -> None:
        """A ValueError unless the Outputs hold this policy's stages, of its kind and combination."""
        names = [stage.name for stage in self.stages]
        missing = [name for name in names if name not in outputs.names]
        if missing:
            raise ValueError(
                f"the policy's stages {missing} are not among {list(outputs.names)}: use the policy with its own pool"
            )
        if outputs.ordered and tuple(names) != outputs.names[: len(names)]:
            raise ValueError(
                f"the policy's stages {names} are not a prefix of {list(outputs.names)}, which depend on their predecessors"
            )
        if (outputs.kind, outputs.combine) != (self.kind, self.combine):
            raise ValueError(
                f"the policy is for {self.kind} combined by {self.combine}, these Outputs hold {outputs.kind} combined by "
                f"{outputs.combine}"
            )

    def with_costs(self, costs: Sequence[float]) -> Policy:
        """The same policy with other costs, one per stage."""
        if len(costs) != len(self.stages):
            raise ValueError(f"{len(costs)} costs for {len(self.stages)} stages: expected one per stage")
        return replace(self, stages=tuple(replace(s, cost=float(c)) for s, c in zip(self.stages, costs, strict=True)))

    def to_json(self) -> str:
        """Strict JSON text; :meth:`from_json` gives back an equal policy, bit for bit. ValueError for a certificate JSON can't hold."""
        try:
            return json.dumps({"format": FORMAT} | asdict(self), indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the certificate can't be JSON ({error}): give finite numbers, text, lists and dicts only"
            ) from error

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Read what :meth:`to_json` wrote. ValueError for text that is not such a policy."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a policy: unreadable JSON ({error}), expected what Policy.to_json writes") from error
        return cls._from_dict(data)

    def save(self, path: str | Path) -> None:
        """Write the JSON, atomically."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a policy file; FileNotFoundError or ValueError name the file."""
        data = read_json(path, "a policy written by Policy.save")
        try:
            return cls._from_dict(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from_dict(cls, data: Any) -> Policy:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"not a policy: format {found!r}, expected {FORMAT!r} as Policy.to_json writes it")
        content = {key: value for key, value in data.items() if key != "format"}
        _check_keys(content, cls, "a policy")
        if not isinstance(content["stages"], list):
            raise ValueError(f"not a policy: stages is {type(content['stages']).__name__}, expected a list")
        for stage in content["stages"]:
            _check_keys(stage, StagePolicy, "a stage")
        for key in ("uncertainty", "kind", "combine", "target"):
            if not isinstance(content.get(key, ""), str | None):
                raise ValueError(f"not a policy: {key} is {type(content[key]).__name__}, expected text")
        return cls(**(content | {"stages": tuple(StagePolicy(**stage) for stage in content["stages"])}))


def _listed(name: str, values: Any) -> list[Any]:
    """What was given per stage, as a list; NumPy's arrays too."""
    if isinstance(values, np.ndarray) and values.ndim:
        return list(values.tolist())
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"{name} is {type(values).__name__}: expected a list, one entry per stage")
    return list(values)


def _sequence(vectors: Any, stages: int) -> tuple[tuple[float | None, ...], ...]:
    """Vectors of τ, rising per stage."""
    expected = f"vectors of {stages} numbers or None, one per stage, that rise from vector to vector (None: all are accepted)"
    if not isinstance(vectors, tuple | list) or not vectors or not all(isinstance(v, tuple | list) for v in vectors):
        raise ValueError(f"sequence is {type(vectors).__name__}: expected {expected}")
    for vector in vectors:
        numbers_only = all(
            t is None or (type(t) is not bool and isinstance(t, numbers.Real) and math.isfinite(t)) for t in vector
        )
        if len(vector) != stages or not numbers_only:
            raise ValueError(f"sequence holds {list(vector)!r}: expected {expected}")
    found = tuple(tuple(None if t is None else float(t) for t in vector) for vector in vectors)
    limits = np.array([[np.inf if t is None else t for t in vector] for vector in found])
    if (limits[1:] < limits[:-1]).any():
        raise ValueError(f"sequence falls at vector {int((limits[1:] < limits[:-1]).any(1).argmax()) + 1}: expected {expected}")
    return found


def _check_keys(content: Any, kind: type, what: str) -> None:
    """A ValueError unless ``content`` is a dict with keys among the fields of ``kind``, the first field included."""
    known = [part.name for part in fields(kind)]
    if not isinstance(content, dict):
        raise ValueError(f"not {what}: {type(content).__name__}, expected an object with {', '.join(known)}")
    unknown = sorted(content.keys() - set(known))
    if unknown:
        raise ValueError(f"not {what} of this version: unknown keys {unknown}, expected {', '.join(known)}")
    if known[0] not in content:
        raise ValueError(f"not {what}: {known[0]} is missing, expected {', '.join(known)}")
