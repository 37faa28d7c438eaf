"""``--precision`` of ``quorate export``: stages at lower precision, the policy refitted to them on the run's validation rows.

Calibration rows certify the refitted policy anew if the old one had a certificate; test rows tell what has changed, and choose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quorate.cascade.policy import Policy
from quorate.cli.bundled import Rows
from quorate.outputs import Outputs
from quorate.runtime.program import Program


def lowered_parts(
    ensemble: Any,
    policy: Policy,
    precision: Sequence[str],
    rows: Mapping[str, Rows],
    golden: int,
    batch_size: int,
    say: Callable[[str], None],
) -> tuple[list[Program], Policy, dict[str, Any]]:
    """(programs, the refitted policy, what else the bundle says of them: ``precision, atol, validation, test``).

    Raises:
        ValueError: as :func:`quorate.export.refit.lowered`, or ``[STAGE=]PRECISION`` that say one stage's twice.
    """
    from quorate.export import programs
    from quorate.export.precision import BATCHED
    from quorate.export.refit import lowered

    names = [stage.name for stage in policy.stages]
    wanted = read_precision(precision, names)
    made = programs(ensemble, rows["validation"].first(golden), names=names, sparse=False, progress=say)
    validation, test = rows["validation"], rows["test"]
    cal: tuple[Any, Any] | None = None
    if policy.certificate is not None:
        batched, mixed = set(wanted.values()) & set(BATCHED), policy.certificate.get("kind") == "scod"
        if batched or mixed:
            why = f"{next(iter(batched))} answers a row by its batch" if batched else "it is of a mix with OOD rows"
            say(f"the certificate is dropped: {why}")
        else:
            cal = (rows["calibration"].all(), rows["calibration"].y)
    say(f"lowering {', '.join(f'{name} to {kind}' for name, kind in wanted.items())}, refitting the policy")
    found = lowered(
        made,
        policy,
        wanted,
        x=validation.all(),
        labels=validation.y,
        cal=cal,
        test=None if test.y is None else (test.all(), test.y),
        batch_size=batch_size,
    )
    more: dict[str, Any] = {
        "precision": found.change,
        "atol": max(1e-3, found.atol),
        "validation": _outputs(found.programs, found.policy, validation, batch_size),
        "test": None if test.y is None else _outputs(found.programs, found.policy, test, batch_size),
    }
    return list(found.programs), found.policy, more


def read_precision(texts: Sequence[str], stages: Sequence[str]) -> dict[str, str]:
    """{stage: precision} of ``PRECISION`` for all, or ``STAGE=PRECISION`` for some.

    Raises:
        ValueError: a precision that there is not, a stage that is not there, or twice.
    """
    from quorate.export.precision import LOWER

    found: dict[str, str] = {}
    for text in texts:
        stage, equals, precision = text.rpartition("=")
        if precision not in LOWER:
            raise ValueError(f"--precision {text}: expected [STAGE=]PRECISION with one of {', '.join(LOWER)}")
        if equals and stage not in stages:
            raise ValueError(f"--precision {text}: there is no stage {stage!r}, expected some of {', '.join(stages)}")
        for name in [stage] if equals else stages:
            if name in found:
                raise ValueError(f"--precision {text}: {name!r} has one already, name each once")
            found[name] = precision
    return found


def _outputs(programs: Sequence[Program], policy: Policy, rows: Rows, batch_size: int) -> Outputs:
    from quorate.runtime.collecting import collect
    from quorate.runtime.session import OnnxStage, open_session

    stages = [OnnxStage(open_session(p.onnx, f"the program of stage {p.ports.stage!r}"), p.ports) for p in programs]
    return collect(
        stages,
        rows.x,
        rows.y,
        kind=policy.kind,
        combine=policy.combine,
        ids=rows.ids,
        costs=[stage.cost for stage in policy.stages],
        batch_size=batch_size,
        kinds=[stage.kind or policy.kind for stage in policy.stages],
    )
