"""The adapters on the real packages, and the package's own networks against theirs with the same weights; skipped without them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("transformers")

import timm
import transformers
from torchvision import models

from ensemble_contract import check_ensemble
from quorate import cost
from quorate.ensemble import DeepEnsemble
from quorate.models import VGG, DepthwiseNet, ResNet, ViT, from_huggingface, from_timm, from_torchvision
from quorate.packed import pack

pytestmark = pytest.mark.slow


def same_tensors(ours, theirs, skip=()):
    """Our network with their tensors, in order."""
    given = [tensor for name, tensor in theirs.state_dict().items() if name not in skip]
    ours.load_state_dict(dict(zip(ours.state_dict(), given, strict=True)))
    return ours.eval()


def lived(model, x):
    """In eval mode, its statistics not those it starts with."""
    with torch.no_grad():
        model.train()(x)
    return model.eval()


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_depthwise_net_is_torchvision_s_mobilenet(width):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 72)
    theirs = lived(models.mobilenet_v2(width_mult=width, num_classes=9), x)
    ours = same_tensors(DepthwiseNet((3, 64, 72), 9, width, "imagenet"), theirs)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_vgg_is_torchvision_s():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 72)
    theirs = models.vgg11_bn(num_classes=9)
    biases = {f"{name}.bias" for name, module in theirs.named_modules() if isinstance(module, nn.Conv2d)}
    assert all((value == 0).all() for name, value in theirs.state_dict().items() if name in biases)
    ours = VGG((3, 64, 72), 9, 11, positions=7, hidden=(4096, 4096), dropout=0.5)
    assert cost.parameters(theirs) - cost.parameters(ours) == sum(theirs.state_dict()[name].numel() for name in biases)
    torch.testing.assert_close(same_tensors(ours, theirs, biases)(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_loads_torchvision_s_state_dict(depth):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 72)
    theirs, ours = lived(getattr(models, f"resnet{depth}")(num_classes=9), x), ResNet((3, 64, 72), 9, depth, "imagenet")
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_vit_is_timm_s():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    theirs = timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=9).eval()
    ours = ViT((3, 64, 64), 9, patch=16)
    state = {k.replace("attn", "attention").replace("mlp.fc", "linear"): v for k, v in theirs.state_dict().items()}
    renamed = {
        "cls_token": "token",
        "pos_embed": "positions",
        "patch_embed.proj.weight": "embed.weight",
        "patch_embed.proj.bias": "embed.bias",
    }
    ours.load_state_dict({renamed.get(k, k): v for k, v in state.items()})
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"])
def test_timm(name):
    model = from_timm(name, 7, channels=1, **({"img_size": 64} if "vit" in name else {}))
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)


def test_timm_keeps_the_contract():
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    check_ensemble(lambda: DeepEnsemble(from_timm("test_resnet", 3) for _ in range(2)), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet_18"}, "name: expected one of the .* models of timm, got 'resnet_18'.*resnet18"),
        ({"img_siz": 64}, "timm can't build 'resnet18' with .*unexpected keyword argument 'img_siz'"),
    ],
)
def test_timm_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        from_timm(**{"name": "resnet18", "classes": 7, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [lambda: from_timm("resnet18", 5), lambda: from_torchvision("resnet18", 5)])
def test_residual_networks_of_both_pack(make):
    packed = pack(make(), members=4, alpha=2, example=torch.randn(2, 3, 64, 64))
    assert packed(torch.randn(3, 3, 64, 64)).shape == (4, 3, 5)
    assert cost.macs(packed, torch.zeros(1, 3, 64, 64)) < 1.1 * cost.macs(make(), torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_1", "mobilenet_v3_small"])
def test_torchvision_s_weights_with_another_head(name, monkeypatch):
    chosen = models.get_model_weights(name).DEFAULT
    classes = len(chosen.meta["categories"])
    torch.manual_seed(1)
    trained = models.get_model(name, weights=None, num_classes=classes).state_dict()
    monkeypatch.setattr(type(chosen), "get_state_dict", lambda *_, **__: trained)
    model, own = from_torchvision(name, 5, "DEFAULT"), from_torchvision(name, classes, "DEFAULT")
    assert (model.eval()(torch.randn(2, 3, 64, 64)).shape) == (2, 5)
    assert all(torch.equal(value, trained[key]) for key, value in own.state_dict().items())
    changed = {key for key, value in model.state_dict().items() if value.shape != trained[key].shape}
    assert len({key.rpartition(".")[0] for key in changed}) == 1  # the head
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items() if key not in changed)


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "googlenet"}, "googlenet has more than one output in training: expected one; pass aux_logits=False"),
        ({"name": "googlenet", "weights": "DEFAULT", "aux_logits": False}, "torchvision can't build 'googlenet'"),
        ({"name": "vit_b_32", "weights": "DEFAULT", "image_size": 64}, "torchvision can't build 'vit_b_32'"),
        ({"weights": "IMAGENET1K_V3"}, "weights: expected one of IMAGENET1K_V1, DEFAULT of resnet18, got 'IMAGENET1K_V3'"),
        ({"name": "fcn_resnet50"}, "name: expected one of the .* models of torchvision, got 'fcn_resnet50'"),
    ],
)
def test_torchvision_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        from_torchvision(**{"name": "resnet18", "classes": 5, **arguments})
    assert "\n" not in str(error.value)


def vit_config(**more):
    return transformers.ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=16, image_size=8, patch_size=4, **more
    )


def test_huggingface_from_a_folder(tmp_path):
    vit_config().save_pretrained(tmp_path)
    model = from_huggingface(str(tmp_path), 7, channels=1, image_size=16)
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"vit has no 'image_siz'.*image_size"):
        from_huggingface(str(tmp_path), 7, image_siz=16)
    with pytest.raises(ValueError, match="transformers has no audio classifier for vit") as error:
        from_huggingface(str(tmp_path), 7, task="audio")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"transformers can't build .*pretrained=True") as error:
        from_huggingface(str(tmp_path), 7, pretrained=True)
    assert "\n" not in str(error.value)


def test_huggingface_weights_from_a_folder(tmp_path):
    torch.manual_seed(0)
    stored = transformers.ViTForImageClassification(vit_config(num_labels=5))
    stored.half().save_pretrained(tmp_path)  # stored in float16
    x = torch.randn(3, 3, 8, 8)
    same = from_huggingface(str(tmp_path), 5, pretrained=True).eval()
    assert {p.dtype for p in same.parameters()} == {torch.float32}
    torch.testing.assert_close(same(x), stored.float().eval()(x).logits)
    other = from_huggingface(str(tmp_path), 7, pretrained=True)
    assert other(x).shape == (3, 7)
    assert all(part.training for part in other.modules())
    for name, value in stored.vit.state_dict().items():
        assert torch.equal(other.network.vit.state_dict()[name], value), name
    with pytest.raises(
        ValueError, match=r"fit but for the head: expected all of 'vit', got none for \d+ of its tensors"
    ) as error:
        from_huggingface(str(tmp_path), 5, pretrained=True, hidden_size=24)
    assert "\n" not in str(error.value)


def test_huggingface_audio(tmp_path):
    config = transformers.ASTConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=16, max_length=32, num_mel_bins=24
    )
    config.save_pretrained(tmp_path / "spectrogram")
    assert from_huggingface(str(tmp_path / "spectrogram"), 4, channels=1, task="audio")(torch.randn(2, 1, 32, 24)).shape == (2, 4)
    wave = transformers.Wav2Vec2Config(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=16, conv_dim=(8, 8), conv_kernel=(10, 3),
        conv_stride=(5, 2), num_feat_extract_layers=2, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    wave.save_pretrained(tmp_path / "wave")
    model = from_huggingface(str(tmp_path / "wave"), 4, channels=1, task="audio").eval()
    assert model(torch.randn(2, 1, 800)).shape == (2, 4)


def test_huggingface_keeps_the_contract(tmp_path):
    vit_config().save_pretrained(tmp_path)
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    check_ensemble(lambda: DeepEnsemble(from_huggingface(str(tmp_path), 3) for _ in range(2)), x)


def test_huggingface_without_a_configuration(tmp_path):
    with pytest.raises(ValueError, match="transformers has no configuration") as error:
        from_huggingface(str(tmp_path), 3)
    assert "\n" not in str(error.value)
