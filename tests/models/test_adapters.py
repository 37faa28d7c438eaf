"""Adapters with small stand-ins for the packages: what is passed on, what is refused, what is said where a package is missing."""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import sys
import types
import typing

import pytest
import torch
from torch import nn

from quorate.cli.recipe import factory
from quorate.models import from_huggingface, from_timm, from_torchvision


class Net(nn.Module):
    """Channels, classes and a dropout; `head` is the module that classes decide."""

    def __init__(self, in_chans=3, num_classes=1000, drop=0.0, width=4):
        super().__init__()
        self.body = nn.Conv2d(in_chans, width, 3)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(width, num_classes)
        self.seen = None

    def forward(self, x):
        return self.head(self.drop(self.body(x).mean((2, 3))))


@pytest.fixture
def timm(monkeypatch):
    def create_model(name, pretrained=False, **options):
        if pretrained == "offline" or (pretrained and name == "vit"):
            raise OSError("no such host\nretried 5 times")
        if name == "heavy":
            raise RuntimeError("word " * 200)
        model = Net(**options)
        model.seen = (name, pretrained)
        return model

    module = types.ModuleType("timm")
    module.create_model, module.list_models = create_model, lambda: ["resnet18", "resnet34", "vit", "heavy"]
    module.is_model = lambda name: name.partition(".")[0] in module.list_models()
    monkeypatch.setitem(sys.modules, "timm", module)


class FakeWeights(enum.Enum):
    IMAGENET1K_V1 = "v1"
    IMAGENET1K_V2 = "v2"
    DEFAULT = IMAGENET1K_V2


@pytest.fixture
def torchvision(monkeypatch):
    """Trained weights are Net's with everything 7, for 1000 classes."""

    def get_model(name, weights=None, num_classes=1000, **options):
        if name == "googlenet" and options.pop("aux_logits", True):
            model = Net(num_classes=num_classes, **options)
            model.aux_logits = True
            return model
        if options.pop("offline", False) and weights is not None:
            raise OSError("no such host")
        model = Net(num_classes=num_classes, **options)
        if weights is not None:
            model.seen = weights
            nn.init.constant_(model.body.weight, 7.0)
            nn.init.constant_(model.head.weight, 7.0)
            if name == "twoheaded":
                model.body = nn.Conv2d(3, 9, 3)
        return model

    models = types.ModuleType("torchvision.models")
    models.get_model, models.get_model_weights = get_model, lambda _: FakeWeights
    models.list_models = lambda module: ["resnet18", "resnet34", "googlenet", "twoheaded"] if module is models else ["fcn"]
    package = types.ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


class FakeConfig:
    """A configuration read from a folder's config.json; what it does not know comes back unused."""

    def __init__(self, values):
        self.__dict__.update(values)

    def to_dict(self):
        return dict(self.__dict__)

    @classmethod
    def from_pretrained(cls, path, return_unused_kwargs, trust_remote_code, local_files_only, **given):
        assert return_unused_kwargs
        assert trust_remote_code is False
        if not local_files_only:
            raise OSError(f"{path} is not a local folder\nand can't be reached")
        with open(f"{path}/config.json", encoding="utf-8") as file:
            values = json.load(file)
        known = {key: value for key, value in given.items() if key in values or key == "num_labels"}
        return cls(values | known), {key: value for key, value in given.items() if key not in known}


class Classifier(Net):
    """Takes its input by name and returns a record, as transformers' models do."""

    base_model_prefix = "net"

    def __init__(self, config, main_input_name):
        super().__init__(getattr(config, "num_channels", 3), config.num_labels)
        self.main_input_name, self.config = main_input_name, config

    def forward(self, pixel_values=None, input_values=None):
        x = pixel_values if pixel_values is not None else input_values[:, None].expand(-1, 3, -1, -1)
        return types.SimpleNamespace(logits=super().forward(x))


@pytest.fixture
def transformers(monkeypatch):
    found = {"missing_keys": ["head.weight"], "mismatched_keys": [("head.bias", (2,), (3,))], "unexpected_keys": []}

    def auto(name, kinds):
        class Auto:
            @staticmethod
            def from_config(config, dtype, trust_remote_code):
                assert (dtype, trust_remote_code) == (torch.float32, False)
                if config.model_type not in kinds:
                    raise ValueError("Unrecognized configuration class <…> for this kind of AutoModel:\na very long list")
                return Classifier(config, name).eval()

            @staticmethod
            def from_pretrained(_, config, dtype, ignore_mismatched_sizes, output_loading_info, **_where):
                assert (dtype, ignore_mismatched_sizes, output_loading_info) == (torch.float32, True, True)
                if config.model_type == "bare":
                    raise OSError("no file named model.safetensors\nin the folder")
                return Classifier(config, name).eval(), found

        return Auto

    module = types.ModuleType("transformers")
    module.AutoConfig = FakeConfig
    module.AutoModelForImageClassification = auto("pixel_values", ("vit", "fixed", "bare"))
    module.AutoModelForAudioClassification = auto("input_values", ("ast",))
    module.found = found
    monkeypatch.setitem(sys.modules, "transformers", module)
    return module


@pytest.fixture
def folder(tmp_path):
    def make(model_type="vit", **values):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "image_size": 32, **values}))
        return str(tmp_path)

    return make


@pytest.mark.usefixtures("timm")
def test_timm_gets_classes_channels_and_options():
    model = from_timm("resnet18.tag", 7, channels=1, pretrained=True, drop=0.3)
    assert model.seen == ("resnet18.tag", True)
    assert (model.body.in_channels, model.head.out_features, model.drop.p) == (1, 7, 0.3)
    assert model(torch.zeros(2, 1, 5, 5)).shape == (2, 7)
    assert from_timm("hf-hub:someone/model", 3).seen == ("hf-hub:someone/model", False)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, r"name: expected one of the 4 models of timm, got 'resnet19'.*resnet"),
        ({"bogus": 3}, r"timm can't build 'resnet18' with .*'bogus': 3.*unexpected keyword argument 'bogus'"),
        ({"num_classes": 3}, "num_classes: expected under its name here, got 3; pass it as classes"),
        ({"in_chans": 1}, "in_chans: expected under its name here, got 1; pass it as channels"),
        ({"classes": 0}, "classes: expected an int of at least 1, got 0"),
        ({"channels": 0}, "channels: expected an int of at least 1, got 0"),
        ({"name": "vit", "pretrained": True}, "timm can't build 'vit' with .*, pretrained=True: no such host retried 5 times"),
        ({"name": "heavy"}, r"timm can't build 'heavy' with .*word word word.*…$"),
    ],
)
def test_timm_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        from_timm(**{"name": "resnet18", "classes": 7, **arguments})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.usefixtures("torchvision")
def test_torchvision_without_and_with_trained_weights():
    model = from_torchvision("resnet18", 7, drop=0.3)
    assert (model.seen, model.head.out_features, model.drop.p) == (None, 7, 0.3)
    for weights, found in (("DEFAULT", FakeWeights.IMAGENET1K_V2), ("IMAGENET1K_V1", FakeWeights.IMAGENET1K_V1)):
        trained = from_torchvision("resnet18", 7, weights)
        assert trained.seen is found
        assert (trained.body.weight == 7).all()
        assert trained.head.weight.shape == (7, 4)
        assert not (trained.head.weight == 7).any()
    whole = from_torchvision("resnet18", 1000, "DEFAULT")
    assert (whole.head.weight == 7).all()  # the weights' own head
    assert from_torchvision("googlenet", 3, aux_logits=False)(torch.zeros(1, 3, 5, 5)).shape == (1, 3)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fcn"}, "name: expected one of the 4 models of torchvision, got 'fcn'"),
        ({"channels": 1}, "channels: expected 3, which torchvision's models take, got 1; use from_timm"),
        ({"weights": "IMAGENET"}, "weights: expected one of IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT of resnet18, got 'IMAGENET'"),
        ({"bogus": 1}, "torchvision can't build 'resnet18' with .*bogus.*unexpected keyword"),
        ({"num_classes": 1}, "num_classes: expected under its name here, got 1; pass it as classes"),
        ({"name": "googlenet"}, "googlenet has more than one output in training: expected one; pass aux_logits=False"),
        ({"name": "googlenet", "weights": "DEFAULT"}, "expected one; its weights have no other form, choose another model"),
        ({"weights": "DEFAULT", "offline": True}, "torchvision can't build 'resnet18' .*weights=DEFAULT: no such host"),
        (
            {"name": "twoheaded", "weights": "DEFAULT"},
            "weights DEFAULT of twoheaded: expected weights that fit but for the head, got others for body, head",
        ),
        ({"classes": 0}, "classes: expected an int of at least 1, got 0"),
    ],
)
def test_torchvision_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        from_torchvision(**{"name": "resnet18", "classes": 7, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("transformers")
def test_huggingface_image_models_from_a_folder(folder):
    model = from_huggingface(folder(num_channels=3), 7, channels=1, image_size=8)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert model.network.config.image_size == 8
    assert all(part.training for part in model.modules())
    assert from_huggingface(folder(num_channels=4), 7).network.body.in_channels == 4  # the configuration's own
    assert from_huggingface(folder("fixed"), 7, channels=3)(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    trained = from_huggingface(folder(num_channels=3), 7, pretrained=True, channels=3)
    assert all(part.training for part in trained.modules())


@pytest.mark.usefixtures("transformers")
def test_huggingface_audio_models_have_no_channel(folder):
    model = from_huggingface(folder("ast"), 7, channels=1, task="audio")
    assert model(torch.zeros(2, 1, 16, 12)).shape == (2, 7)


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("vit", {"image_siz": 8}, "vit has no 'image_siz'.*image_size"),
        ("vit", {"task": "text"}, 'task: expected "image" or "audio", got \'text\''),
        ("vit", {"task": "audio"}, "transformers has no audio classifier for vit: choose another model"),
        ("ast", {"task": "audio", "channels": 2}, "channels: expected 1, which audio classifiers take, got 2; mix them to one"),
        ("fixed", {"channels": 1}, "channels: expected 3, fixed has no entry for them, got 1; choose another model"),
        ("vit", {"classes": 0}, "classes: expected an int of at least 1, got 0"),
        ("vit", {"num_labels": 3}, "num_labels: expected under its name here, got 3; pass it as classes"),
        ("vit", {"trust_remote_code": True}, "trust_remote_code: expected only code of transformers itself"),
        ("vit", {"name_or_path": "someone/none"}, "transformers has no configuration 'someone/none' with .*and can't be reached"),
        (
            "bare",
            {"pretrained": True},
            "transformers can't build .*pretrained=True: no file named model.safetensors in the folder",
        ),
    ],
)
def test_huggingface_refusals(folder, kind, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        from_huggingface(**{"name_or_path": folder(kind), "classes": 7, **arguments})
    assert "\n" not in str(error.value)


def test_huggingface_weights_that_lack_a_part_of_the_base(folder, transformers):
    transformers.found["missing_keys"].append("net.body.weight")
    with pytest.raises(ValueError, match=r"expected all of 'net', got none for 1 of its tensors, first 'net.body.weight'"):
        from_huggingface(folder(), 7, pretrained=True)


CALLS = {
    "timm": lambda: from_timm("resnet18", 3),
    "torchvision": lambda: from_torchvision("resnet18", 3),
    "transformers": lambda: from_huggingface("someone/model", 3),
}


@pytest.mark.parametrize("package", CALLS)
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.models", raising=False)
    with pytest.raises(
        ImportError, match=rf"{package}.* can't be imported \(no module '{package}.*'\): pip install {package}$"
    ) as error:
        CALLS[package]()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("package", CALLS)
def test_a_torchvision_for_another_pytorch_is_explained(package, monkeypatch):
    def broken(*_):
        raise RuntimeError("operator torchvision::nms does not exist\n  in C++")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(
        ImportError, match=r"torchvision does not fit this PyTorch .*nms.*: install the torchvision build made for it"
    ):
        CALLS[package]()


def test_other_failures_of_an_import_come_through(monkeypatch):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="something else"):
        from_timm("resnet18", 3)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(("given", "share"), [({}, 0.0), ({"drop": 0.25}, 0.25)])
def test_facts_of_the_data_are_filled_in(given, share):
    data = types.SimpleNamespace(shape=(1, 6, 6), classes=["a", "b"], width=2)
    model = factory("quorate.models.from_timm", {"name": "resnet18", **given}, data)()
    assert (model.body.in_channels, model.head.out_features, model.drop.p) == (1, 2, share)


@pytest.mark.parametrize("make", [from_timm, from_torchvision, from_huggingface])
def test_usable_as_a_class_path(make):
    assert inspect.isfunction(make)
    assert typing.get_type_hints(make)["return"] is nn.Module
    assert {"classes", "channels"} <= set(inspect.signature(make).parameters)
    assert getattr(importlib.import_module("quorate.models"), make.__name__) is make
