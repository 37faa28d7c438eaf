"""``quorate inspect BUNDLE``: what a bundle says of itself, and whether it is what it says. Needs no PyTorch.

Shown is the manifest, whose digest and schema are checked in any case. Verifying reads every file, compares sizes and hashes, opens the
programs and runs the golden inputs: what loading does. Then it is also known what runs each stage here, sparse kernels or ONNX Runtime.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quorate.cli.parse import parse, parser
from quorate.cli.usage import UsageError

if TYPE_CHECKING:
    from quorate.cascade.policy import StagePolicy
    from quorate.runtime.engines import Engine
    from quorate.runtime.manifest import Manifest, Stage
    from quorate.runtime.program import Port

SHOWN = 12  # class names
LONGEST = 100  # characters of a value from elsewhere


def run(argv: Sequence[str]) -> int:
    """Run the command."""
    from quorate.runtime.folder import read_file, read_manifest
    from quorate.runtime.loading import load_bundle

    chosen = _parse(argv)
    folder = Path(chosen.bundle)
    manifest = read_manifest(folder)
    if chosen.digest is not None and manifest.digest != chosen.digest:
        raise ValueError(f"{folder} has the digest {manifest.digest}: expected {chosen.digest}, it is another bundle")
    seconds: dict[str, float] | None = None
    engines: tuple[Engine, ...] | None = None
    if chosen.verify:
        begun = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*quorate\[sparse\]", RuntimeWarning)  # it is told below
            runtime = load_bundle(folder, providers=chosen.providers, digest=manifest.digest)
        engines = runtime.engines
        seconds = {**runtime.load_seconds, "total": time.perf_counter() - begun}
    if chosen.card:
        files = {file.path: file for file in manifest.files}
        text = read_file(folder, files[manifest.card]).decode("utf-8", "replace")
        sys.stdout.write("".join(letter for letter in text if letter == "\n" or letter.isprintable()))
    elif chosen.format == "json":
        runs = None if engines is None else [asdict(engine) for engine in engines]
        said = manifest.to_dict() | {"digest": manifest.digest, "verified": seconds, "engines": runs}
        print(json.dumps(said, indent=2, allow_nan=False))
    else:
        _show(manifest, seconds, engines)
    return 0


def _parse(argv: Sequence[str]) -> Any:
    from jsonargparse import ActionYesNo

    using = parser("inspect", "Show what a bundle is and how it decides, and verify it: hashes, schema, golden outputs.")
    add = using.add_argument
    add("bundle", type=str, help="the bundle's folder, as quorate export writes it")
    add("--verify", action=ActionYesNo(no_prefix="no-"), default=True, help="read every file and run the golden inputs")
    add("--digest", type=str, default=None, metavar="sha256:…", help="refuse any bundle but the one of this digest")
    add(
        "--providers",
        type=str,
        nargs="+",
        default=None,
        metavar="NAME",
        help="of ONNX Runtime, to verify with (default: the CPU's)",
    )
    add("--format", type=Literal["table", "json"], default="table", help="how to print")
    add("--card", action="store_true", help="print the model card instead (markdown)")
    chosen = parse(using, argv)
    if chosen.card and chosen.format == "json":
        raise UsageError("--card prints markdown: leave --format json out")
    return chosen


def _show(manifest: Manifest, seconds: Mapping[str, float] | None, engines: Sequence[Engine] | None) -> None:
    from quorate.report import grid

    for line in _facts(manifest):
        print(line)
    sizes = {file.path: file.size_bytes for file in manifest.files}
    grid.show(
        STAGES, [_stage(stage, sizes) for stage in manifest.stages], left=("stage", "precision", "takes", "gives", "program")
    )
    for engine in engines or ():
        print(f"runs here         {_clean(engine.stage)}: {engine.name} ({_clean(engine.why)})")
    if manifest.policy is not None:
        rows = [_rule(rule, k) for k, rule in enumerate(manifest.policy.stages)]
        grid.show(RULES, rows, left=("stage", "joins", "goes on where"))
        for line in _decides(manifest):
            print(line)
    for name, change in _changes(manifest):
        print(f"lower precision   {name}: {change}")
    golden = manifest.golden
    print(f"golden outputs    {golden.rows} rows, |difference| ≤ {golden.atol:g} + {golden.rtol:g} · |value|")
    for key, value in manifest.provenance.items():
        print(f"provenance        {_clean(key)}: {_clean(value)}")
    print(f"verified          {_verified(manifest, seconds)}")


def _facts(manifest: Manifest) -> Iterator[str]:
    yield f"bundle            {_clean(manifest.name)}"
    yield f"digest            {manifest.digest}"
    yield f"gives             {manifest.kind}, members combined by {manifest.combine}"
    yield f"takes             {_port(manifest.input)}"
    if manifest.classes is not None:
        more = "" if len(manifest.classes) <= SHOWN else ", …"
        yield f"classes           {len(manifest.classes)}: {', '.join(map(_clean, manifest.classes[:SHOWN]))}{more}"
    for key, value in manifest.preprocessing.items():
        yield f"made from         {_clean(key)}: {_clean(value)}"
    total = manifest.costs.get("total")
    if manifest.costs.get("unit") == "unknown":
        yield "costs             unknown"
    elif isinstance(total, int | float):
        yield f"costs             {total:,.6g} {_clean(manifest.costs.get('unit', ''))} per row, all stages together"


STAGES = ("stage", "precision", "takes", "gives", "MACs", "program", "bytes")


def _stage(stage: Stage, sizes: Mapping[str, int]) -> list[str]:
    ports = stage.ports
    taken = [] if ports.input is None else [_port(ports.input)]
    if ports.span is not None:
        taken[-1] += f" steps {ports.span[0]}–{ports.span[1]}"
    taken += [f"{_clean(name)} {_port(port)}" for name, port in ports.reads.items()]
    *members, width = ports.members.shape
    given = [f"{members[0] if members else 1} × {width or 'any'} {ports.members.dtype}"]
    given += [f"{_clean(name)} {_port(port)}" for name, port in ports.writes.items()]
    held = sizes[stage.program] + (0 if stage.ticket is None else sizes[stage.ticket])
    batch = "" if ports.batch is None else f", {ports.batch} rows at a time"
    return [
        _clean(ports.stage),
        ports.precision,
        "; ".join(taken) + batch,
        "; ".join(given),
        "–" if ports.macs is None else f"{ports.macs:,.0f}",
        stage.program.rpartition("/")[2] + ("" if stage.ticket is None else " + ticket"),
        f"{held:,}",
    ]


RULES = ("stage", "joins", "T", "goes on where", "accepts up to", "cost")
JOINS = {"mean": "the ones before", "replace": "nothing: takes their place"}


def _rule(rule: StagePolicy, k: int) -> list[str]:
    low, high = rule.window or (None, None)
    ends = f"{'−∞' if low is None else f'{low:.6g}'} ≤ u ≤ {'∞' if high is None else f'{high:.6g}'}"
    share = None if rule.rate is None else f"{100 * rule.rate:.4g} % at random"
    return [
        _clean(rule.name),
        "–" if k == 0 else JOINS[rule.join],
        f"{rule.temperature:.4g}",
        share or ("nobody" if rule.window is None else "everybody" if rule.window == (None, None) else ends),
        "all" if rule.tau is None else f"{rule.tau:.6g}",
        f"{rule.cost:,.6g}",
    ]


def _decides(manifest: Manifest) -> Iterator[str]:
    """Uncertainty, target and certificate of the policy."""
    from quorate.cascade import target as targets
    from quorate.cascade.guarantee import Certificate
    from quorate.report.certificates import claim

    policy = manifest.policy
    assert policy is not None
    yield f"uncertainty u     {policy.uncertainty}"
    yield f"target            {policy.target or '–'}"
    if policy.certificate is None:
        yield "certificate       none"
        return
    try:
        certificate = Certificate.from_dict(policy.certificate)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the policy's certificate can't be read ({' '.join(str(error).split())}): export the bundle anew"
        ) from error
    figure = None if policy.target is None else targets.parse(policy.target).figure
    sure = "" if certificate.delta is None else f", with confidence {100 * (1 - certificate.delta):.4g} %"
    yield f"certificate       {claim(certificate, figure)}, on {certificate.rows:,} calibration rows{sure}"


def _changes(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What lower precision changed, per stage and on rows."""
    said = manifest.precision or {}
    stages = said.get("stages")
    for name, about in stages.items() if isinstance(stages, Mapping) else ():
        sizes = [about.get(key) if isinstance(about, Mapping) else None for key in ("bytes_before", "bytes_after")]
        shown = " → ".join("?" if size is None else f"{size:,}" if isinstance(size, int) else _clean(size) for size in sizes)
        yield _clean(name), f"{_clean(about.get('precision')) if isinstance(about, Mapping) else '?'}, {shown} bytes"
    for part in ("validation", "test"):
        about = said.get(part)
        if isinstance(about, Mapping) and isinstance(about.get("agreement"), int | float):
            yield f"{part} rows", f"{100 * about['agreement']:.4g} % have the label of before"


def _verified(manifest: Manifest, seconds: Mapping[str, float] | None) -> str:
    size = sum(file.size_bytes for file in manifest.files)
    if seconds is None:
        return f"the manifest alone; its {len(manifest.files)} files, {size:,} bytes, were not read"
    parts = {"files": f"{len(manifest.files)} files, {size:,} bytes,", "sessions": "sessions", "golden": "golden outputs"}
    told = ", ".join(f"{what} {1e3 * seconds[key]:.0f} ms" for key, what in parts.items() if key in seconds)
    return f"digest, schema, {told}; {1e3 * seconds['total']:.0f} ms in all"


def _port(port: Port) -> str:
    return f"{port.dtype} ({', '.join(['B', *('any' if size is None else str(size) for size in port.shape)])})"


def _clean(value: Any) -> str:
    """A value from elsewhere on one short line, without control characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
