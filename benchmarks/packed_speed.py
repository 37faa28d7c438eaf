"""What the packed_*.py benchmarks share: the networks, the engines that run them, the settings, and how ratios are taken and written.

An engine is a way to run a module: eager PyTorch, eager with norms folded, torch.compile, torch.compile with frozen weights, CUDA graphs,
ONNX Runtime; PyTorch's in contiguous memory ("nchw") and in channels_last ("nhwc"). All variants of one comparison are timed in turn
in one process (quorate.cost.interleaving); a ratio is the median over the rounds, with its quartiles.

Allocator (Linux, glibc). Activations of large batches are fetched from the system and given back at every step, and each of their pages
faults anew: more time than the arithmetic, and more so for a packed network, whose activations are α times as large. `--allocator
keep`, the default, starts the process again with huge pages and with memory kept for reuse (the variables in ALLOCATORS), for all
variants alike; `--allocator system` leaves it as it is.

torch-uncertainty (packed_rival.py) is compared with where it can be imported, otherwise these rows are left out:

    python3 -m venv .venv-tu
    .venv-tu/bin/pip install -c constraints.txt torch==2.13.0
    .venv-tu/bin/pip install --no-deps torchvision==0.28.0 torch-uncertainty==0.13.0 timm==1.0.20
    .venv-tu/bin/pip install -c constraints.txt numpy scipy lightning torchmetrics "jsonargparse[signatures]" rich safetensors onnx \
        onnxscript onnxruntime einops seaborn pillow huggingface-hub scikit-learn
    PYTHONPATH=src .venv-tu/bin/python benchmarks/packed_training.py        (make bench-tu)
"""

from __future__ import annotations

import argparse
import copy
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import quorate
import record
from quorate.cost.interleaving import Times, interleaved, quartiles, ratio
from quorate.models import MLP, ResNet, ViT
from quorate.packed import PackedEnsemble, pack_members, unpack
from quorate.packed.folding import fold

SEED = 0
MEMBERS, ALPHA = 4, 2
GIB = 1 << 30
ALLOCATORS: dict[str, dict[str, str]] = {
    "system": {},
    "keep": {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "MALLOC_MMAP_THRESHOLD_": str(4 * GIB),
        "MALLOC_TRIM_THRESHOLD_": str(16 * GIB),
    },
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: ResNet((3, 32, 32), 10, depth=18), (3, 32, 32)),
    "resnet8": (lambda: ResNet((3, 32, 32), 10, depth=8), (3, 32, 32)),
    "mlp-small": (lambda: MLP((64,), 10, hidden=(128, 128)), (64,)),
    "mlp": (lambda: MLP((256,), 10, hidden=(512, 512, 512)), (256,)),
    "vit": (lambda: ViT((3, 32, 32), 10, patch=4, width=192, depth=6, heads=4), (3, 32, 32)),
}
PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True)
class Settings:
    """What a benchmark was asked to measure."""

    threads: int
    batches: list[int]
    repeats: int
    smoke: bool
    output: Path
    device: torch.device
    precision: str
    allocator: str
    networks: list[str]

    def plain(self) -> dict[str, Any]:
        """For the record."""
        return {"device": str(self.device), "precision": self.precision, "allocator": self.allocator, "batches": self.batches}

    def input(self, name: str, batch: int) -> Tensor:
        """A batch for a network."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(batch, *NETWORKS[name][1], generator=generator).to(self.device)

    def cast(self) -> AbstractContextManager[object]:
        """Autocast, if the precision asks for it."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def wait(self) -> None:
        """For the accelerator."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def settings(
    doc: str | None, argv: Sequence[str] | None, networks: Sequence[str], batches: Sequence[int] = (1, 32, 128)
) -> Settings:
    """The command line; it may start the process again with the allocator's variables, and sets threads and precision."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=list(batches))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(networks))
    parser.add_argument(
        "--smoke", action="store_true", help="one small batch, few rounds, fewer engines: that it runs, no result"
    )
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of the results")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="tf32 is for GPUs; bf16 is autocast")
    parser.add_argument("--allocator", choices=ALLOCATORS, default="keep")
    asked = parser.parse_args(argv)
    if asked.threads < 1 or asked.repeats < 1 or min(asked.batches) < 1:
        parser.error("--threads, --repeats and --batches: expected 1 or more")
    wanted = ALLOCATORS[asked.allocator]
    if argv is None and any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    torch.set_num_threads(asked.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = asked.precision == "tf32"
    torch._dynamo.config.recompile_limit = 1000  # one class of module is compiled for every variant and batch
    record.RESULTS = asked.output
    device = torch.device(asked.device)
    batches, repeats = ([2], 2) if asked.smoke else (asked.batches, asked.repeats)
    small = [name for name in asked.networks if name != "resnet18"] if asked.smoke else asked.networks
    return Settings(
        asked.threads, batches, repeats, asked.smoke, asked.output, device, asked.precision, asked.allocator, small or ["resnet8"]
    )


def single(name: str) -> nn.Module:
    """The single network."""
    torch.manual_seed(SEED)
    return NETWORKS[name][0]()


def packed(name: str, members: int = MEMBERS, alpha: int = ALPHA) -> nn.Module:
    """The packed network of as many members."""
    ensemble: nn.Module = quorate.pack(single(name), members=members, alpha=alpha, gamma=1)
    return ensemble


# — engines: (module, example) → a call that runs it —

Engine = Callable[[nn.Module, Tensor], Callable[[], object]]


def channels_last(module: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of both in channels_last, if the input is a batch of images; else the same."""
    if x.dim() != 4:
        return module, x
    return copy.deepcopy(module).to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)


def folded(module: nn.Module) -> nn.Module:
    """Norms folded into the layers before them, of an ensemble or of a plain network (packed as the only member and unpacked)."""
    if isinstance(module, PackedEnsemble):
        return fold(module)
    return unpack(fold(pack_members([module])), 0)


def compiled(module: nn.Module, mode: str | None = None, freeze: bool = False) -> nn.Module:
    """torch.compile for one shape."""
    options = {"freezing": True} if freeze else None
    return torch.compile(module, dynamic=False, mode=mode, options=options)  # type: ignore[return-value]


def onnxruntime(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """ONNX Runtime on the CPU, with as many threads."""
    import onnxruntime as ort

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def inference_engines(asked: Settings) -> dict[str, Engine]:
    """By name; each in both memory formats, but ONNX Runtime, which lays out memory itself."""

    def with_torch(change: Callable[[nn.Module], nn.Module], last: bool) -> Engine:
        def engine(module: nn.Module, x: Tensor) -> Callable[[], object]:
            if last:
                module, x = channels_last(module, x)
            changed = change(module)

            def call() -> object:
                with torch.no_grad(), asked.cast():
                    return changed(x)

            return call

        return engine

    changes: dict[str, Callable[[nn.Module], nn.Module]] = {"eager": lambda module: module}
    if not asked.smoke:
        changes |= {"eager folded": folded, "compile": compiled, "compile frozen": lambda module: compiled(module, freeze=True)}
        if asked.device.type != "cpu":
            changes["cuda graphs"] = lambda module: compiled(module, mode="reduce-overhead")
    found = {
        f"{name} {form}": with_torch(change, form == "nhwc") for name, change in changes.items() for form in ("nchw", "nhwc")
    }
    if asked.device.type == "cpu" and asked.precision == "fp32":
        found["onnxruntime"] = onnxruntime
    return found


# — figures —


def measure(asked: Settings, calls: dict[str, Callable[[], object]]) -> Times:
    """Milliseconds of every call in each round."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return interleaved(
            calls, asked.repeats, warmup=1 if asked.smoke else 3, wait=asked.wait, least_ms=0 if asked.smoke else 20
        )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Quartiles and median."""
    low, median, high = quartiles(values)
    return {"median": median, "q1": low, "q3": high}


def against(times: Times, name: str, base: str) -> dict[str, float]:
    """Quartiles and median of the rounds' ratios."""
    low, median, high = ratio(times, name, base)
    return {"median": median, "q1": low, "q3": high}


def fastest(times: Times, names: Sequence[str]) -> str:
    """The name of the least median."""
    return min(names, key=lambda name: quartiles(times[name])[1])


def write(name: str, asked: Settings, commit: str, figures: dict[str, Any], note: str) -> None:
    """The record of a benchmark; where settings are not the usual ones, in a file of their own."""
    apart = [
        part
        for part, usual in ((asked.device.type, "cpu"), (asked.precision, "fp32"), (asked.allocator, "keep"))
        if part != usual
    ]
    path = record.write(
        "-".join([name, *apart]),
        {"settings": asked.plain(), **figures},
        commit=commit,
        seeds=[SEED],
        repeats=asked.repeats,
        note=" ".join(note.split()),
        threads=asked.threads,
    )
    print("wrote", path)
