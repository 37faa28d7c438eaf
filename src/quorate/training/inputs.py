"""What the members of an ensemble see in training: one batch for all of them, or inputs of their own.

Source: Lakshminarayanan et al. 2017 (arXiv 1612.01474), §2.4: members begin with other weights and see the data in another order.
Packed-Ensembles (Laurent et al. 2023, arXiv 2210.09184, §3) give all members the same batch, which is the default here. With
a seed s_m for member m

    s_m = (seed + m · 0x9E3779B9) mod 2³²        distinct for all m < 2³², the step being odd; s_0 = seed

    inputs                order of the rows    augmentation and mixing    x                 y
    "shared"              by seed              by seed                    (B, *shape)       (B,) or (B, D)
    "own_augmentation"    by seed              by s_m                     (M, B, *shape)    (B,) or (B, D)
    "own_order"           by s_m               by s_m                     (M, B, *shape)    (M, B) or (M, B, D)

So member 0 always sees what it would share, and with ``"own_order"`` member m sees what a training of that member alone sees under
``seed=s_m``. An epoch has each row at most once per member; losses add up as before, one mean per member.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from quorate.data import Data
from quorate.ensemble import device_of, each, evaluating
from quorate.training.settings import Settings

GOLDEN = 0x9E3779B9  # 2³² / golden ratio: trainings whose seeds are less than 2,000 apart share no s_m below 700,000 members


def member_seed(seed: int, member: int) -> int:
    """s_m of a ``seed`` in [0, 2³²) and a ``member`` in [0, 2³²): what the member's order, augmentation and mixing are drawn from."""
    return (seed + member * GOLDEN) % 2**32 if member else seed


def check_inputs(ensemble: nn.Module, settings: Settings, data: Data, members: int) -> None:
    """A ValueError unless the ensemble's ``members`` can have the inputs that the settings ask for, tried on two rows of the data."""
    if settings.inputs == "shared":
        return
    name, asked = type(ensemble).__name__, f"inputs={settings.inputs!r}"
    if getattr(ensemble, "learner", None) is not None:
        raise ValueError(f"{asked}: {name} trains one network, not its members, expected inputs='shared'")
    augmented = settings.augment and data.augmentation is not None
    if settings.inputs == "own_augmentation" and not (augmented or settings.mixup or settings.cutmix):
        why = f"{data.name} has no augmentation" if settings.augment else "augment=False"
        raise ValueError(
            f"{asked}: {why} and nothing is mixed, so all members would see the same: expected data with an augmentation, mixup, "
            "cutmix, or inputs='own_order'"
        )
    x, _ = data.train.batch(np.arange(min(2, len(data.train))))
    try:
        with evaluating(ensemble), torch.no_grad():
            outputs = each(ensemble, torch.stack([x.to(device_of(ensemble))] * members))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{asked}: {name}.each can't take {(members, *x.shape)} ({reason}): expected (M, B, *shape)") from error
    except ValueError as error:
        raise ValueError(f"{asked}: {error}") from error
    if outputs.shape != (members, len(x), data.width):
        raise ValueError(
            f"{asked}: {name}.each gives {tuple(outputs.shape)} for {(members, *x.shape)}, expected {(members, len(x), data.width)}"
        )
