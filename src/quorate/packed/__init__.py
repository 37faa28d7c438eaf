"""Packed-Ensembles: M small networks side by side in the channels of one network, in one forward pass.

Laurent et al., Packed-Ensembles for Efficient Uncertainty Estimation, ICLR 2023, arXiv:2210.09184.
"""

from quorate.packed.convert import LooksTrainedWarning, pack
from quorate.packed.ensemble import LayerRow, PackedEnsemble
from quorate.packed.exchange import pack_members, unpack
from quorate.packed.layers import PackedConv2d, PackedLinear

__all__ = [
    "LayerRow",
    "LooksTrainedWarning",
    "PackedConv2d",
    "PackedEnsemble",
    "PackedLinear",
    "pack",
    "pack_members",
    "unpack",
]
