"""Packed-Ensembles: M small networks side by side in one network, in one forward pass.

Laurent et al., Packed-Ensembles for Efficient Uncertainty Estimation, ICLR 2023, arXiv:2210.09184.
"""

from quorate.packed import spelling, tokens, windows  # noqa: F401  register layers of torchvision, timm, transformers
from quorate.packed.backends import Tuning, apply_, backends, tune
from quorate.packed.convert import LooksTrainedWarning, pack
from quorate.packed.ensemble import LayerRow, PackedEnsemble
from quorate.packed.exchange import pack_members, unpack
from quorate.packed.folding import fold
from quorate.packed.layers.arrangement import PackedLayer, Packing
from quorate.packed.layers.attention import PackedMultiheadAttention
from quorate.packed.layers.convolution import (
    PackedConv1d,
    PackedConv2d,
    PackedConv3d,
    PackedConvTranspose1d,
    PackedConvTranspose2d,
    PackedConvTranspose3d,
)
from quorate.packed.layers.depth import PackedStochasticDepth, StochasticDepth
from quorate.packed.layers.embedding import PackedEmbedding, PackedEmbeddingBag
from quorate.packed.layers.layernorm import PackedLayerNorm, PackedRMSNorm
from quorate.packed.layers.linear import PackedLinear
from quorate.packed.layers.norms import (
    PackedBatchNorm1d,
    PackedBatchNorm2d,
    PackedBatchNorm3d,
    PackedGroupNorm,
    PackedInstanceNorm1d,
    PackedInstanceNorm2d,
    PackedInstanceNorm3d,
)
from quorate.packed.layers.prelu import PackedPReLU
from quorate.packed.layers.recurrent import PackedGRU, PackedLSTM, PackedRNN
from quorate.packed.layers.stack import PackedTransformerDecoder, PackedTransformerEncoder
from quorate.packed.layers.transformer import PackedTransformerDecoderLayer, PackedTransformerEncoderLayer
from quorate.packed.registry import register_packing

__all__ = [
    "LayerRow",
    "LooksTrainedWarning",
    "PackedBatchNorm1d",
    "PackedBatchNorm2d",
    "PackedBatchNorm3d",
    "PackedConv1d",
    "PackedConv2d",
    "PackedConv3d",
    "PackedConvTranspose1d",
    "PackedConvTranspose2d",
    "PackedConvTranspose3d",
    "PackedEmbedding",
    "PackedEmbeddingBag",
    "PackedEnsemble",
    "PackedGRU",
    "PackedGroupNorm",
    "PackedInstanceNorm1d",
    "PackedInstanceNorm2d",
    "PackedInstanceNorm3d",
    "PackedLSTM",
    "PackedLayer",
    "PackedLayerNorm",
    "PackedLinear",
    "PackedMultiheadAttention",
    "PackedPReLU",
    "PackedRMSNorm",
    "PackedRNN",
    "PackedStochasticDepth",
    "PackedTransformerDecoder",
    "PackedTransformerDecoderLayer",
    "PackedTransformerEncoder",
    "PackedTransformerEncoderLayer",
    "Packing",
    "StochasticDepth",
    "Tuning",
    "apply_",
    "backends",
    "fold",
    "pack",
    "pack_members",
    "register_packing",
    "tune",
    "unpack",
]
