"""Embeddings under transformers' names, against their formulas, packed in models that are not traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quorate.packed import pack, unpack
from quorate.packed.registry import rewritten


class ViTEmbeddings(nn.Module):
    """The parts of transformers' module, and what it computes."""

    def __init__(self, masked: bool = False) -> None:
        super().__init__()
        self.cls_token, self.position_embeddings = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.mask_token = nn.Parameter(torch.randn(1, 1, 8)) if masked else None
        self.patch_embeddings = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Flatten(2), Swap())
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 4, 4) → (B, 5, 8)."""
        return torch.cat((self.cls_token.expand(len(x), -1, -1), self.patch_embeddings(x)), 1) + self.position_embeddings


class Swap(nn.Module):
    """(B, C, N) → (B, N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """The last two dimensions change places."""
        return x.mT


class BertEmbeddings(nn.Module):
    """The parts of transformers' module, and what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings = nn.Embedding(9, 8), nn.Embedding(7, 8)
        self.token_type_embeddings = nn.Embedding(2, 8)
        self.LayerNorm, self.dropout = nn.LayerNorm(8, 0.1), nn.Dropout(0.0)

    def forward(self, words: Tensor, types: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """(B, N) → (B, N, 8)."""
        types = torch.zeros_like(words) if types is None else types
        places = torch.stack([torch.arange(words.shape[1])] * len(words)) if places is None else places
        x = self.word_embeddings(words) + self.position_embeddings(places) + self.token_type_embeddings(types)
        return self.dropout(self.LayerNorm(x))


ViTEmbeddings.__module__ = "transformers.models.vit.modeling_vit"
BertEmbeddings.__module__ = "transformers.models.bert.modeling_bert"


class Model(nn.Module):
    """A classifier that torch.fx cannot trace: its first token behind a layer."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings, self.layer, self.head = embeddings, nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, 5)."""
        if float(x.float().mean()) > 1e9:  # a branch on values
            x = x * 0
        tokens = self.embeddings(x)
        return self.head((tokens[:, 0] + self.layer(tokens).tanh().mean(1)).relu())


def respelt(module: nn.Module) -> Any:
    return rewritten(nn.Sequential(module))[0]


def test_image_tokens() -> None:
    torch.manual_seed(0)
    module, x = ViTEmbeddings().double(), torch.randn(3, 3, 4, 4, dtype=torch.float64)
    module.cls_token.requires_grad_(False)
    new = respelt(module)
    assert (new(x, None, None) - module(x)).abs().max() < 1e-12
    assert {name for name, p in new.named_parameters() if not p.requires_grad} == {"cls_token.weight"}
    assert sum(p.numel() for p in new.parameters()) == sum(p.numel() for p in module.parameters())
    for more in ({"bool_masked_pos": torch.ones(3, 4)}, {"interpolate_pos_encoding": True}):
        with pytest.raises(ValueError, match="ViTEmbeddings: expected images alone, got masks or positions to interpolate"):
            new(x, **more)
    with pytest.raises(ValueError, match="ViTEmbeddings: expected no mask token, got one"):
        respelt(ViTEmbeddings(masked=True))


def test_text_tokens() -> None:
    torch.manual_seed(0)
    module, words = BertEmbeddings().double(), torch.randint(0, 9, (3, 5))
    new = respelt(module)
    assert (new(words) - module(words)).abs().max() < 1e-12
    types, others = torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[6, 5, 4, 3, 2]])
    given = new(input_ids=words, token_type_ids=types, position_ids=others)
    assert (given - module(words, types.expand(3, 5), others.expand(3, 5))).abs().max() < 1e-12
    for more in ({"inputs_embeds": torch.zeros(3, 5, 8)}, {"input_ids": words, "past_key_values_length": 2}):
        with pytest.raises(ValueError, match="BertEmbeddings: expected whole texts, got inputs_embeds or a cache"):
            new(**more)


@pytest.mark.parametrize("images", [True, False])
def test_models_with_them_are_packed_module_by_module(images: bool) -> None:
    torch.manual_seed(0)
    model = Model(ViTEmbeddings() if images else BertEmbeddings()).double().eval()
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64) if images else torch.randint(0, 9, (3, 5))
    packed = pack(model, members=4, alpha=2, example=x)
    assert packed.program.member is None
    logits = packed(x)
    assert logits.shape == (4, 3, 5)
    assert all((unpack(packed, m)(x) - logits[m]).abs().max() < 1e-12 for m in range(4))
    copies = pack(model, members=2, alpha=2, init="copy", example=x)
    assert (copies(x) - model(x)).abs().max() < 1e-12
    gradients = torch.autograd.grad(logits[1].square().sum(), tuple(packed.parameters()))
    for gradient in gradients:
        rows = gradient.unflatten(0, (4, -1)).flatten(1)
        assert [bool(row.any()) for row in rows] == [False, True, False, False]
