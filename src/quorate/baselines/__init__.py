"""Ensembles from one network, without the four methods: what they have to be compared with."""

from quorate.baselines.mc_dropout import MCDropout
from quorate.baselines.snapshot import SnapshotEnsemble

__all__ = ["MCDropout", "SnapshotEnsemble"]
