"""Networks of timm, torchvision and Hugging Face transformers as modules (B, *shape) → logits (B, classes).

The three packages are imported when a function is called; none is a dependency. What is built is the package's own module, so that
it can be traced, packed and exported as such; only a transformers model is wrapped, because it takes its input by name and returns
a record.

    from_timm           timm.create_model                               models of any number of channels
    from_torchvision    torchvision.models.get_model, classification    models of three channels
    from_huggingface    AutoModelForImage- / AudioClassification        by hub name, or a folder with config.json

Weights are drawn from PyTorch's global generator unless pretrained ones are asked for; then a head for another number of classes is
drawn anew, and nothing else may differ. Normalisation is not part of them: put ``data.normalise()`` in front, as the command line does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quorate._optional import imported, one_line
from quorate._validation import nearest
from quorate.models.shape import choice, whole

OWN_NAMES = {"num_classes": "classes", "num_labels": "classes", "in_chans": "channels", "num_channels": "channels"}


def check_options(options: Mapping[str, Any]) -> None:
    """A ValueError for an option that has a name of its own here."""
    for foreign in OWN_NAMES.keys() & options.keys():
        raise ValueError(f"{foreign}: expected under its name here, got {options[foreign]!r}; pass it as {OWN_NAMES[foreign]}")


def check_name(package: str, name: str, known: Iterable[str]) -> None:
    """A ValueError with the nearest name unless `name` is a known one."""
    names = sorted(known)
    if name not in names:
        raise ValueError(f"name: expected one of the {len(names)} models of {package}, got {name!r}{nearest(name, names)}")


def with_new_head(trained: nn.Module, fresh: nn.Module, what: str) -> nn.Module:
    """`trained` with that one module of `fresh`, the same network for other classes, whose tensors have other shapes.

    Raises:
        ValueError: more than one module differs.
    """
    old, new = trained.state_dict(), fresh.state_dict()
    differing = sorted(
        name for name in old.keys() | new.keys() if name not in old or name not in new or old[name].shape != new[name].shape
    )
    heads = sorted({name.rpartition(".")[0] for name in differing})
    if len(heads) > 1:
        raise ValueError(
            f"{what}: expected weights that fit but for the head, got others for {', '.join(heads[:4])}; "
            "leave the options at the weights' own, or pass weights=None"
        )
    for head in heads:
        trained.set_submodule(head, fresh.get_submodule(head))
    return trained


class NamedInput(nn.Module):
    """A transformers classifier as x → logits: the input goes in under its name, the logits are taken out of the record.

    Shapes: (B, *shape) → (B, classes); with `flat` the single channel is left out, (B, 1, …) → (B, …).
    """

    def __init__(self, network: nn.Module, flat: bool) -> None:
        super().__init__()
        self.network, self.flat = network, flat
        self.input_name: str = network.main_input_name  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """(B, *shape) → logits (B, classes)."""
        logits: Tensor = self.network(**{self.input_name: x[:, 0] if self.flat else x}).logits
        return logits


def from_timm(name: str, classes: int, channels: int = 3, pretrained: bool = False, **options: Any) -> nn.Module:
    """A model of timm, as its ``create_model`` builds it.

    Args:
        name: as ``timm.list_models()`` has it, with or without a tag of weights, or ``hf-hub:…`` / ``local-dir:…``.
        classes: number of logits.
        channels: of the images; pretrained weights are adapted to them by timm.
        pretrained: load timm's weights (downloaded by it); the head is new where it has other classes.
        **options: for ``create_model`` and the model, such as ``img_size=32``.

    Raises:
        ImportError: timm, or what it needs, can't be imported; says what to install.
        ValueError: an unknown name (the nearest is named), options that the model does not take, or weights that can't be had.
    """
    timm = imported("timm")
    check_options(options)
    if ":" not in name and not timm.is_model(name):
        check_name("timm", name, timm.list_models())
    sizes = {"num_classes": whole("classes", classes), "in_chans": whole("channels", channels)}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **sizes, **options)
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError, OSError) as error:
        raise ValueError(
            f"timm can't build {name!r} with {sizes | options}, pretrained={pretrained}: {one_line(error)}"
        ) from error
    return model


def from_torchvision(name: str, classes: int, weights: str | None = None, channels: int = 3, **options: Any) -> nn.Module:
    """A classification model of torchvision.

    Args:
        name: as ``torchvision.models.list_models(module=torchvision.models)`` has it.
        classes: number of logits.
        weights: None, or the name of trained ones of this model, ``"DEFAULT"`` or ``"IMAGENET1K_V1"`` (downloaded by torchvision).
        channels: of the images: 3, which torchvision's models take.
        **options: for the model, such as ``dropout=0.1``. GoogLeNet and Inception need ``aux_logits=False``, one output,
            which their trained weights don't have.

    Raises:
        ImportError: torchvision is not installed or does not fit PyTorch; says what to do.
        ValueError: an unknown name or weights (the nearest are named), channels other than 3, options that the model does not take,
            more than one output, or weights that can't be had.
    """
    models = imported("torchvision.models")
    check_options(options)
    check_name("torchvision", name, models.list_models(module=models))
    if whole("channels", channels) != 3:
        raise ValueError(f"channels: expected 3, which torchvision's models take, got {channels}; use from_timm")
    if weights is not None:
        known = models.get_model_weights(name).__members__
        if weights not in known:
            raise ValueError(
                f"weights: expected one of {', '.join(known)} of {name}, got {weights!r}{nearest(str(weights), list(known))}"
            )
    try:
        model: nn.Module = models.get_model(name, weights=None, num_classes=whole("classes", classes), **options)
        trained = None if weights is None else models.get_model(name, weights=known[weights], **options)
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        raise ValueError(f"torchvision can't build {name!r} with {options}, weights={weights}: {one_line(error)}") from error
    if getattr(model, "aux_logits", False):
        remedy = "pass aux_logits=False" if weights is None else "its weights have no other form, choose another model"
        raise ValueError(f"{name} has more than one output in training: expected one; {remedy}")
    return model if trained is None else with_new_head(trained, model, f"weights {weights} of {name}")


def from_huggingface(
    name_or_path: str,
    classes: int,
    pretrained: bool = False,
    channels: int | None = None,
    task: Literal["image", "audio"] = "image",
    **options: Any,
) -> nn.Module:
    """An image or audio classifier of transformers. Code from the hub is never run.

    Args:
        name_or_path: a model's name on the hub (downloaded by transformers), or a folder with its ``config.json`` (and weights).
        classes: number of logits.
        pretrained: load the weights that are there; the head on the base model is new where they have none of this size.
        channels: of the inputs; by default the configuration's for images, 1 for audio.
        task: ``"image"`` (AutoModelForImageClassification), or ``"audio"`` (AutoModelForAudioClassification): inputs (1, …), whose
            single channel is left out; what then follows, samples or a spectrogram, must be as the model takes it.
        **options: other values in the configuration, such as ``image_size=32``.

    Raises:
        ImportError: transformers is not installed; says what to do.
        ValueError: no configuration there, options that it does not have (the nearest is named), no such classifier for it, channels
            that it can't take, or weights that can't be had or lack a part of the base model.
    """
    kind = choice("task", task, ("image", "audio"))
    transformers = imported("transformers")
    check_options(options)
    if "trust_remote_code" in options:
        raise ValueError("trust_remote_code: expected only code of transformers itself, got the option; leave it out")
    where = {"trust_remote_code": False, "local_files_only": Path(name_or_path).is_dir()}
    wanted = options | {"num_labels": whole("classes", classes)}
    try:
        config, unused = transformers.AutoConfig.from_pretrained(name_or_path, return_unused_kwargs=True, **where, **wanted)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"transformers has no configuration {name_or_path!r} with {options}: {one_line(error)}") from error
    for key in unused.keys() & options.keys():
        raise ValueError(f"{config.model_type} has no {key!r}{nearest(key, sorted(config.to_dict()))}")
    _set_channels_(config, kind, channels)
    auto = getattr(transformers, f"AutoModelFor{kind.capitalize()}Classification")
    try:
        if pretrained:
            network, found = auto.from_pretrained(
                name_or_path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True, **where
            )
        else:
            network, found = auto.from_config(config, dtype=torch.float32, trust_remote_code=False), {}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        if str(error).startswith("Unrecognized configuration class"):
            raise ValueError(f"transformers has no {kind} classifier for {config.model_type}: choose another model") from error
        raise ValueError(f"transformers can't build {name_or_path!r}, pretrained={pretrained}: {one_line(error)}") from error
    _check_loaded(network, found, name_or_path)
    return NamedInput(network.train(), kind == "audio")


def _set_channels_(config: Any, task: str, channels: int | None) -> None:
    """Write the channels into the configuration. Raises ValueError where it has no such entry."""
    if channels is None:
        return
    if task == "audio":
        if whole("channels", channels) != 1:
            raise ValueError(f"channels: expected 1, which audio classifiers take, got {channels}; mix them to one")
    elif hasattr(config, "num_channels"):
        config.num_channels = whole("channels", channels)
    elif whole("channels", channels) != 3:
        raise ValueError(f"channels: expected 3, {config.model_type} has no entry for them, got {channels}; choose another model")


def _check_loaded(network: Any, found: Mapping[str, Any], what: str) -> None:
    """A ValueError if weights of the base model, below the head, were missing or of another shape."""
    absent = [*found.get("missing_keys", ()), *(key[0] for key in found.get("mismatched_keys", ()))]
    base = sorted(key for key in absent if key.startswith(f"{network.base_model_prefix}."))
    if base:
        raise ValueError(
            f"the weights of {what!r} fit but for the head: expected all of {network.base_model_prefix!r}, got none for "
            f"{len(base)} of its tensors, first {base[0]!r}; leave the options at the weights' own, or pass pretrained=False"
        )
