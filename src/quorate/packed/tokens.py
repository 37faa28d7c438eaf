"""The embeddings of transformers' ViT and BERT, spelt in layers that can be packed one by one.

Their models are not traced but packed module by module (`swapped.py`), so each parameter has to lie in a layer and each layer has to
read a batch. A class token and positions become embeddings that hold the same values (views of them) and are looked up for every
row; positions and token types of a text, which are one row for the whole batch, are looked up for every row likewise. The package is
not imported. What is left out is refused: masked patches, positions between those learned, embeddings in place of words.

Shapes: images (B, channels, H, W) → (B, 1 + patches, C); words (B, N) → (B, N, C).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quorate.packed.registry import register_packing


def looked_up(parameter: nn.Parameter) -> nn.Embedding:
    """An embedding with the values of a parameter (1, N, C): a view of it, frozen if it is."""
    rows = nn.Parameter(parameter.detach().reshape(-1, parameter.shape[-1]), requires_grad=parameter.requires_grad)
    embedding = nn.Embedding(rows.shape[0], rows.shape[1], device="meta")
    embedding.weight = rows
    return embedding


def counted(x: Tensor, length: int) -> Tensor:
    """0, 1, …, length − 1 for every row of x: (B, length)."""
    return torch.arange(length, device=x.device).expand(x.shape[0], length)


class ImageTokens(nn.Module):
    """ViTEmbeddings: (B, channels, H, W) → (B, 1 + patches, C) (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929, eq. 1).

    Raises ValueError for a module with a token for masked patches.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        if module.mask_token is not None:
            raise ValueError("ViTEmbeddings: expected no mask token, got one; build the model with use_mask_token=False")
        self.patch_embeddings = module.patch_embeddings
        self.cls_token, self.position_embeddings = looked_up(module.cls_token), looked_up(module.position_embeddings)
        self.dropout = module.dropout

    def forward(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, interpolate_pos_encoding: bool | None = False
    ) -> Tensor:
        """(B, channels, H, W) → (B, 1 + patches, C). Raises ValueError for masked patches and interpolated positions."""
        if bool_masked_pos is not None or interpolate_pos_encoding:
            raise ValueError("ViTEmbeddings: expected images alone, got masks or positions to interpolate; leave them out")
        patches = self.patch_embeddings(pixel_values)
        x = torch.cat((self.cls_token(counted(patches, 1)), patches), 1)
        out: Tensor = self.dropout(x + self.position_embeddings(counted(x, x.shape[1])))
        return out


class TextTokens(nn.Module):
    """BertEmbeddings: words (B, N) → (B, N, C) (Devlin et al., NAACL 2019, arXiv:1810.04805, §3.2)."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings = module.word_embeddings, module.position_embeddings
        self.token_type_embeddings = module.token_type_embeddings
        self.LayerNorm, self.dropout = module.LayerNorm, module.dropout

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values_length: int = 0,
    ) -> Tensor:
        """(B, N) → (B, N, C). Raises ValueError for embeddings in place of words, and for words that follow others."""
        if input_ids is None or inputs_embeds is not None or past_key_values_length:
            raise ValueError("BertEmbeddings: expected whole texts, got inputs_embeds or a cache; pass input_ids alone")
        places = counted(input_ids, input_ids.shape[1]) if position_ids is None else position_ids.expand_as(input_ids)
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids.expand_as(input_ids)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(types) + self.position_embeddings(places)
        out: Tensor = self.dropout(self.LayerNorm(x))
        return out


register_packing("transformers.models.vit.modeling_vit.ViTEmbeddings", rewrite=ImageTokens)
register_packing("transformers.models.bert.modeling_bert.BertEmbeddings", rewrite=TextTokens)
