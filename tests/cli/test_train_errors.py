"""What `quorate train` says to wrong options, recipes, classes and data: the whole line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from quorate.cli.main import main
from quorate.cli.parse import FULL_PATH

RECIPE = Path(__file__).parents[2] / "recipes" / "digits-single.yaml"
HELP = " (see quorate train --help)"
MODELS = (
    "(it has: CNN1d, DepthwiseNet, LeNet, MLP, MultiExitResNet, RNN, ResNet, VGG, ViT, WideResNet, from_huggingface, from_timm, "
    "from_torchvision, resnet14, resnet18, resnet20, resnet34, resnet50, resnet8)"
)
LOADERS = "audio_folder, cifar10, cifar100, digits, hub, idx, image_folder, npz, npz_rows, table"
DATA = "data: {class_path: quorate.data.digits}\n"
MODEL = "model: {class_path: quorate.models.MLP}\n"
UNTYPED = (
    "odd.Untyped needs 'num_classes', which has no type annotation; "
    "quorate fills in shape, classes and channels: annotate or rename it"
)
NPZ = "data: {class_path: quorate.data.npz, init_args: {path: x.npz, layout: nhw, "


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def complaint(capsys: pytest.CaptureFixture[str], status: int, *options: str) -> str:
    """The one line that the command prints, without its name."""
    assert main(["train", "--run", "r", "--progress", "false", *options]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("quorate train: ")
    assert not Path("r", "run.json").exists()
    return error.removeprefix("quorate train: ").rstrip("\n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--fit.lrr", "1"], "unknown option '--fit.lrr'; did you mean '--fit.lr'?"),
        (["--ft.lr", "1"], "unknown option '--ft.lr'; did you mean '--fit.lr'?"),
        (["--fit.lr", "fast"], "fit.lr: expected float, got 'fast'"),
        (["--seed", "x"], "seed: expected int, got 'x'"),
        (["--model", "ResNet", "--model.depth", "x"], "model.depth: expected int, got 'x'"),
        (
            ["--ensemble.kind", "deap"],
            "ensemble.kind: expected one of 'single', 'deep', 'packed', 'snapshot', 'mc-dropout', 'edst', 'dst', 'bdistil', got 'deap'",
        ),
        (
            ["--model", "Foo"],
            f"quorate.models has no model 'Foo' {MODELS}; your own model needs its full path, as in my_module.Foo",
        ),
        (
            ["--model=ResNt"],
            f"quorate.models has no model 'ResNt'; did you mean 'ResNet'? {MODELS}; "
            "your own model needs its full path, as in my_module.ResNt",
        ),
        (
            ["--model", "quorate.models.ResNt"],
            f"quorate.models has no model 'ResNt'; did you mean 'ResNet'? {MODELS}; "
            "your own model needs its full path, as in my_module.ResNt",
        ),
        (  # several classes of PyTorch have this name
            ["--model", "Linear"],
            f"quorate.models has no model 'Linear' {MODELS}; your own model needs its full path, as in my_module.Linear",
        ),
        (
            ["--data", "digit"],
            f"quorate.data has no data 'digit'; did you mean 'digits'? (it has: {LOADERS}); "
            "your own data needs its full path, as in my_module.digit",
        ),
        (
            ["--model", "my.Net"],
            "model 'my.Net' can't be imported (No module named 'my'): give the full path of a class or function, as in my_module.Name",
        ),
        (
            ["--data", "json.Foo"],
            "data 'json.Foo' can't be imported (module 'json' has no attribute 'Foo'): "
            "give the full path of a class or function, as in my_module.Name",
        ),
        (
            ["--model", ".x"],
            "model '.x' can't be imported (Unexpected import path format: .x): "
            "give the full path of a class or function, as in my_module.Name",
        ),
        (
            ["--data", "quorate.data.Augmentation"],
            "data 'quorate.data.Augmentation': expected a subclass of Data, or a function whose return annotation is one",
        ),
        (["--model", "odd.Untyped"], UNTYPED),
        (["--data.help", "json.Foo"], "data 'json.Foo' can't be imported (module 'json' has no attribute 'Foo'): " + FULL_PATH),
        (
            ["--data.help=digit"],
            f"quorate.data has no data 'digit'; did you mean 'digits'? (it has: {LOADERS}); "
            "your own data needs its full path, as in my_module.digit",
        ),
        (["--model", "torn.Net"], "model 'torn.Net' can't be used: invalid syntax (torn.py, line 1)"),
        (["--data", "npz", "--data.path", "x"], "data 'quorate.data.npz' needs layout: give --data.layout"),
        (
            ["--model", "ResNet", "--model.dpth", "8"],
            "quorate.models.ResNet does not take 'dpth'; did you mean 'depth'? (it takes: shape, classes, depth, stem, width)",
        ),
        (
            ["--data.sed", "1"],
            "quorate.data.digits does not take 'sed'; did you mean 'seed'? (it takes: held_out, fractions, seed)",
        ),
    ],
)
def test_wrong_options(capsys: pytest.CaptureFixture[str], options: list[str], expected: str) -> None:
    Path("torn.py").write_text("class Net(:\n")
    Path("odd.py").write_text("from torch import nn\n\n\nclass Untyped(nn.Module):\n    def __init__(self, num_classes): ...\n")
    assert complaint(capsys, 2, "--config", str(RECIPE), *options) == expected + HELP


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (DATA + MODEL + "fit: {lr: 1\nseed: 0\n", "r.yaml, line 4: not valid YAML, expected ',' or '}', but got ':'"),
        (DATA + MODEL + "fit:\n\t- 3\n", "r.yaml, line 4: not valid YAML, found character '\\t' that cannot start any token"),
        (DATA + "seed: \x07\n", "r.yaml, line 2: not valid YAML, special characters are not allowed: mend this line"),
        ("name: \udcff\n", "r.yaml: expected YAML in UTF-8, found the byte 0xff: save it as UTF-8"),
        ("", "r.yaml: expected a mapping with keys such as data, model, ensemble, fit, found nothing"),
        ("- 1\n", "r.yaml: expected a mapping with keys such as data, model, ensemble, fit, found a list"),
        (DATA + MODEL + "fit: 3\n", "r.yaml: fit must be a mapping of options, got 3: write fit: {name: value}"),
        (DATA + "model: 3\n", "model: expected a class path, or a mapping with class_path and init_args, got 3"),
        (
            DATA + "model: {class_path: ResNt}\n",
            f"quorate.models has no model 'ResNt'; did you mean 'ResNet'? {MODELS}; "
            "your own model needs its full path, as in my_module.ResNt",
        ),
        (
            "data: {class_path: quorate.data.digts}\n" + MODEL,
            f"quorate.data has no data 'digts'; did you mean 'digits'? (it has: {LOADERS}); "
            "your own data needs its full path, as in my_module.digts",
        ),
        (
            NPZ + "augmentation: {class_path: quorate.data.Foo}}}\n" + MODEL,
            "data.augmentation 'quorate.data.Foo' can't be imported (module 'quorate.data' has no attribute 'Foo'): "
            "give the full path of a class or function, as in my_module.Name",
        ),
        (
            NPZ + "augmentation: {pat: 1}}}\n" + MODEL,
            "quorate.data.Augmentation does not take 'pat'; did you mean 'pad'? (it takes: pad, flip, fill)",
        ),
        (NPZ + "augmentation: {pad: x}}}\n" + MODEL, "data.augmentation.pad: expected int, got 'x'"),
        (DATA + MODEL + "fitt: {lr: 1}\n", "unknown key 'fitt.lr'; did you mean 'fit.lr'?"),
        (DATA + MODEL + "fit: {learning_rate: 1}\n", "unknown key 'fit.learning_rate'"),
        (DATA, "the following arguments are required: model"),
    ],
)
def test_wrong_recipes(capsys: pytest.CaptureFixture[str], recipe: str, expected: str) -> None:
    Path("r.yaml").write_bytes(recipe.encode("utf-8", "surrogateescape"))
    line = complaint(capsys, 2, "--config", "r.yaml")
    if "not valid YAML" in expected and "mend" not in expected:
        line, _, rest = line.partition(" (while ")
        assert rest.endswith("): mend this line or the one before" + HELP)
        assert line == expected
    else:
        assert line == expected + HELP


def test_the_broken_one_of_two_recipes_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("b.yaml").write_text("fit: [\n")
    line = complaint(capsys, 2, "--config", str(RECIPE), "--config=b.yaml")
    assert line.startswith("b.yaml, line 2: not valid YAML, expected the node content, but found '<stream end>'")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--data", "idx", "--data.root", "none"],
            "expected train-images-idx3-ubyte or train-images-idx3-ubyte.gz in none, found neither: "
            "looked for none/train-images-idx3-ubyte, none/train-images-idx3-ubyte.gz",
        ),
        (
            ["--data", "idx", "--data.root", "damaged"],
            "damaged/train-images-idx3-ubyte: expected the idx magic 00 00, a dtype code in ['08', '09', '0b', '0c', '0d', '0e'] "
            "and 1 to 32 axes, found 68 65 6c 6c: not an idx file, or a damaged one",
        ),
        (
            ["--data", "npz", "--data.path", "x.npz", "--data.layout", "nhw"],
            "expected an .npz file, found none at x.npz: check the path",
        ),
        (
            ["--data.fractions", "[0.5, 0.5, 0.5, 0.5]"],
            "fractions must sum to at most 1, got [0.5, 0.5, 0.5, 0.5], which sum to 2",
        ),
        (["--data", "own_data.nothing"], "data 'own_data.nothing' made a NoneType: expected a quorate.data.Data, return one"),
        (["--data", "own_data.empty"], "x of the training split is empty: fill it"),
        (["--fit.epochs", "0"], "epochs=0: expected at least 1"),
        (["--ensemble.members", "0"], "ensemble.members=0: expected at least 1"),
    ],
)
def test_what_the_loader_refuses(capsys: pytest.CaptureFixture[str], options: list[str], expected: str) -> None:
    Path("damaged").mkdir()
    Path("damaged", "train-images-idx3-ubyte").write_text("hello")
    Path("own_data.py").write_text(
        "from quorate.data import Data\n\n\ndef nothing() -> Data:\n    return None\n\n\n"
        "def empty() -> Data:\n    raise ValueError('x of the training split\\nis empty: fill it')\n"
    )
    assert complaint(capsys, 1, "--config", str(RECIPE), *options) == expected


def test_empty_split(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = np.zeros((12, 4, 4), np.uint8), np.arange(12) % 2
    np.savez("x.npz", x_train=x, y_train=y, x_test=x[:0], y_test=y[:0])
    Path("r.yaml").write_text(NPZ + "}}\n" + MODEL)
    assert complaint(capsys, 1, "--config", "r.yaml") == (
        "test: x must be (N, *shape) with at least one row and one value per row, got shape (0, 1, 4, 4): "
        "an empty or 1-D split cannot be used"
    )


@pytest.mark.parametrize(
    "augmentation", ["{class_path: quorate.data.Augmentation, init_args: {pad: 1, flip: true}}", "{pad: 1, flip: true}"]
)
def test_npz_with_augmentation(augmentation: str) -> None:
    from jsonargparse import ArgumentParser, set_parsing_settings

    from quorate.cli.recipe import load
    from quorate.data import Augmentation, Data

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 4, 4)).astype(np.uint8), np.arange(60) % 2
    np.savez("x.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    np.savez("far.npz", x=x)
    Path("r.yaml").write_text(NPZ + f"augmentation: {augmentation}, ood: {{far: far.npz}}}}}}\n")
    set_parsing_settings(subclasses_enabled=[Data])
    using = ArgumentParser(exit_on_error=False)
    using.add_argument("--config", action="config")
    using.add_subclass_arguments(Data, "data")
    data = load(using.parse_args(["--config", "r.yaml"]).data)
    assert data.augmentation == Augmentation(1, True)
    assert (data.name, list(data.ood), data.shape) == ("npz", ["far"], (1, 4, 4))


def test_nested_classes_are_made_for_every_model() -> None:
    from jsonargparse import Namespace
    from torch import nn

    from quorate.cli.recipe import arguments, factory
    from quorate.data import digits

    Path("own_parts.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self, activations: list[nn.Module], **more: int) -> None:\n"
        "        super().__init__(*activations)\n        self.more = more\n"
    )
    parts = [Namespace(class_path="torch.nn.ELU", init_args=Namespace(alpha=2.0)), Namespace(class_path="torch.nn.GELU")]
    chosen = Namespace(class_path="own_parts.Net", init_args=Namespace(activations=parts), dict_kwargs={"depth": 3})
    make = factory(chosen.class_path, arguments(chosen), digits())
    first, second = make(), make()
    assert isinstance(first[0], nn.ELU)
    assert first[0].alpha == 2.0
    assert isinstance(first[1], nn.GELU)
    assert first.more == {"depth": 3}
    assert first[0] is not second[0]


@pytest.mark.parametrize(
    ("class_path", "given", "expected"),
    [
        (
            "quorate.models.Foo",
            {},
            "model 'quorate.models.Foo' can't be imported (module 'quorate.models' has no attribute 'Foo'): ",
        ),
        ("own.Foo", {}, "model 'own.Foo' can't be imported (No module named 'own'): "),
        ("quorate.models.lenet", {}, "model 'quorate.models.lenet' can't be called (<module"),
        ("quorate.models.LeNet", {"widht": 3}, "model 'quorate.models.LeNet' does not take 'widht'; did you mean 'width'?"),
    ],
)
def test_factory_refuses(class_path: str, given: dict[str, int], expected: str) -> None:
    from quorate.cli.recipe import factory
    from quorate.data import digits

    with pytest.raises(ValueError) as caught:
        factory(class_path, given, digits())
    assert str(caught.value).startswith(expected)
