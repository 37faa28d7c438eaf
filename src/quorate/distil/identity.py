"""What makes a distillation that distillation, as JSON values: two with the same identity come to the same bits on the same machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from quorate.data import Augmentation, Data, Split
from quorate.data.dataset import digest
from quorate.distil.pool import Pool
from quorate.distil.round_loss import LossSettings
from quorate.distil.rules import Rules
from quorate.distil.teacher import Teacher
from quorate.distil.teacher_sources import tensors_hash
from quorate.training.identity import structure
from quorate.training.settings import Settings


def identity_of(
    teacher: Teacher,
    pool: Any,
    data: Data,
    rows: Split,
    augmentation: Augmentation | None,
    settings: Settings,
    rules: Rules,
    losses: LossSettings,
    limit: float,
    about: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The identity; ``limit`` is the budget in MACs, which the rules may give as a share of the teacher's.

    Raises:
        ValueError: an ``about`` that JSON has no words for.
    """
    identity = {
        "settings": settings.deciding(),
        "rules": rules.as_json(),
        "limit_macs": limit,
        "loss": asdict(losses),
        "data": data.fingerprint(),
        "transfer": None if rows is data.train else digest([rows.x, rows.ids]),
        "augmentation": None if augmentation is None else asdict(augmentation),
        "teacher": teacher.identity,
        "students": _students(pool),
        "about": about or {},
    }
    try:
        return dict(json.loads(json.dumps(identity, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"about={about!r} is not JSON ({error}): expected text, numbers, lists and dicts with text keys"
        ) from error


def _students(pool: Any) -> dict[str, Any]:
    """Names of every size, structure and weights of what seed 0 makes of it, how a pool links them."""
    told = []
    for make in pool.makes:
        module = make(0)
        told.append(structure(module) + tensors_hash(module))
    options = (
        {"links": pool.links, "stem": pool.stem, "warm": pool.warm, "breadth": pool.breadth} if isinstance(pool, Pool) else {}
    )
    return {"names": list(pool.names), "made": hashlib.sha256("".join(told).encode()).hexdigest()[:16], **options}
