"""The manifest: all that a bundle says of itself, as JSON under a digest. Format "quorate-bundle/1"; the published schema lies beside.

The digest is the SHA-256 of the manifest without it, as JSON with sorted keys, no spaces, ASCII only. It guards against damage, not against
somebody who makes a bundle of their own: who wants that compares the digest with one that was told by a trusted way.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from itertools import islice
from typing import Any

from quorate.cascade.policy import Policy
from quorate.runtime.agreement import check
from quorate.runtime.program import Port, Ports

FORMAT, VERSION = "quorate-bundle", 1
LARGEST = 8 * 2**20  # bytes of a manifest
MOST = 200_000  # values in it, which the schema's check takes seconds for
DEEPEST = 64  # levels of JSON
SHOWN = 10  # errors of the schema that are looked at, to tell of the best one


class BundleError(ValueError):
    """A bundle that is damaged, is none, or can't be run here; one line says which and what to do."""


@dataclass(frozen=True)
class File:
    """A file of the bundle: its path inside, with ``/``, its bytes and their SHA-256 in hexadecimal."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Stage:
    """A stage: what its program takes and gives, and the files it is made from.

    ``scattered``: the initialisers that the ticket file holds, and their shapes.
    """

    ports: Ports
    program: str
    ticket: str | None = None
    scattered: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Golden:
    """Inputs and every stage's outputs, checked on load: |found − stored| ≤ atol + rtol · |stored|."""

    path: str
    rows: int
    rtol: float
    atol: float


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        name: for people.
        input: the raw input of one row: its dtype and shape (``name`` plays no part).
        stages: in order.
        kind, combine: of the members, as :class:`quorate.Outputs` has them.
        policy: of a classification; None of a regression.
        classes: names, in order, or None.
        golden, files: see above. card: path of the model card.
        preprocessing: what was done to inputs before they were raw inputs; programs do the rest themselves.
        costs: {"unit", "total"} and whatever else the maker wrote down.
        watch: the pass rates on validation rows that a drift watch starts from, or None.
        precision: what lower precision changed, by stage, or None.
        provenance: who made it, from what, with which versions.
    """

    name: str
    input: Port
    stages: tuple[Stage, ...]
    kind: str
    combine: str
    policy: Policy | None
    golden: Golden
    files: tuple[File, ...]
    card: str
    classes: tuple[str, ...] | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Any] = field(default_factory=dict)
    watch: Mapping[str, Any] | None = None
    precision: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``manifest.json``, with its digest. ValueError for values that JSON has no words for."""
        try:
            data = self.to_dict()
            data["digest"] = digest(data)
            return json.dumps(data, indent=1, allow_nan=False) + "\n"
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"a bundle's manifest can't hold this as JSON ({error}): give text, finite numbers, lists, dicts"
            ) from error

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` of what it says; of one that was read, that in the file, which a newer Quorate might write in other words."""
        return digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """As the JSON values that will be read back, without the digest."""
        data = {
            "format": f"{FORMAT}/{VERSION}",
            "name": self.name,
            "input": {"dtype": self.input.dtype, "shape": list(self.input.shape)},
            "kind": self.kind,
            "combine": self.combine,
            "classes": None if self.classes is None else list(self.classes),
            "preprocessing": dict(self.preprocessing),
            "stages": [_stage(stage) for stage in self.stages],
            "policy": None if self.policy is None else json.loads(self.policy.to_json()),
            "costs": dict(self.costs),
            "watch": None if self.watch is None else dict(self.watch),
            "precision": None if self.precision is None else dict(self.precision),
            "golden": asdict(self.golden),
            "card": self.card,
            "files": [asdict(file) for file in self.files],
            "provenance": dict(self.provenance),
        }
        return dict(json.loads(json.dumps(data, allow_nan=False), object_pairs_hook=_once))

    @classmethod
    def from_json(cls, text: bytes | str, where: str = "manifest.json") -> Manifest:
        """Read and check it: JSON, version, digest, schema, policy, and that its parts fit each other. Raises :class:`BundleError`."""
        data = _parsed(text, where)
        form, _, version = str(data.get("format", ""))[:80].partition("/")
        if form != FORMAT:
            raise BundleError(f"{where} has format {form!r}: expected {FORMAT}/{VERSION}, a bundle that quorate export wrote")
        if version != str(VERSION):
            newer = version.isascii() and version.isdigit() and int(version) > VERSION
            remedy = "install a newer Quorate" if newer else "export it anew"
            raise BundleError(f"{where} has format {form}/{version}, this Quorate reads {FORMAT}/{VERSION}: {remedy}")
        said = data.pop("digest", None)
        if said != digest(data):
            raise BundleError(f"{where} is damaged: its digest is not that of its content; copy or export the bundle anew")
        _check_schema(data, where)
        try:
            found = _manifest(data)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise BundleError(f"{where} is damaged: {' '.join(str(error).split())[:300]}; export the bundle anew") from error
        found.__dict__["digest"] = said
        return found


def digest(data: Mapping[str, Any]) -> str:
    """The digest of a manifest's content."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


@cache
def schema() -> dict[str, Any]:
    """The published JSON Schema of a manifest."""
    found: dict[str, Any] = json.loads(files("quorate.runtime").joinpath("manifest.schema.json").read_text(encoding="utf-8"))
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of which no key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _parsed(text: bytes | str, where: str) -> dict[str, Any]:
    if len(text) > LARGEST:
        raise BundleError(f"{where} has {len(text):,} bytes: expected at most {LARGEST:,}, it is no manifest")

    def finite(literal: str) -> float:
        number = float(literal)
        if not math.isfinite(number):
            raise ValueError(f"number {literal[:20]} is too large")
        return number

    def no_number(literal: str) -> float:
        raise ValueError(f"{literal} is no JSON")

    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        data = json.loads(decoded, object_pairs_hook=_once, parse_float=finite, parse_constant=no_number)
        _check_extent(data)
        json.dumps(data, ensure_ascii=False).encode("utf-8")  # halves of surrogate pairs, which can't be shown or stored
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{where} can't be read as JSON ({' '.join(str(error).split())[:200]}): copy or export the bundle anew"
        ) from error
    if not isinstance(data, dict):
        raise BundleError(f"{where} holds a {type(data).__name__}: expected an object, as quorate export writes it")
    return data


def _check_extent(data: Any) -> None:
    """That it is neither deep nor of very many values. Raises ValueError."""
    level, count = [data], 1
    for _ in range(DEEPEST):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
        count += len(level)
        if count > MOST:
            raise ValueError(f"more than {MOST:,} values")
        if not level:
            return
    raise ValueError(f"more than {DEEPEST} levels deep")


def _check_schema(data: Mapping[str, Any], where: str) -> None:
    from jsonschema.exceptions import best_match

    error = best_match(islice(_validator().iter_errors(data), SHOWN))
    if error is not None:
        said = " ".join(error.message.split())
        said = said if len(said) <= 160 else f"{said[:160]}…"
        place = " ".join(error.json_path.split())[:120]
        raise BundleError(f"{where}, {place}: {said}; expected what quorate export writes, export it anew")


@cache
def _validator() -> Any:
    """Of the schema, strict about integers: JSON Schema also takes 3.0 for one, a NumPy shape does not."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    integers = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return extend(Draft202012Validator, type_checker=integers)(schema())


def _port(port: Port | None) -> dict[str, Any] | None:
    return None if port is None else {"name": port.name, "dtype": port.dtype, "shape": list(port.shape)}


def _stage(stage: Stage) -> dict[str, Any]:
    ports = stage.ports
    return {
        "name": ports.stage,
        "program": stage.program,
        "precision": ports.precision,
        "input": _port(ports.input),
        "reads": {name: _port(port) for name, port in ports.reads.items()},
        "members": _port(ports.members),
        "writes": {name: _port(port) for name, port in ports.writes.items()},
        "drops": list(ports.drops),
        "span": None if ports.span is None else list(ports.span),
        "batch": ports.batch,
        "macs": ports.macs,
        "ticket": stage.ticket,
        "scattered": {name: list(shape) for name, shape in stage.scattered.items()},
    }


def _read_port(data: Mapping[str, Any] | None) -> Port | None:
    return None if data is None else Port(data.get("name", "x"), data["dtype"], tuple(data["shape"]))


def _read_stage(data: Mapping[str, Any]) -> Stage:
    members = _read_port(data["members"])
    assert members is not None
    reads, writes = ({name: p for name, d in data[what].items() if (p := _read_port(d))} for what in ("reads", "writes"))
    span = None if data["span"] is None else (int(data["span"][0]), int(data["span"][1]))
    ports = Ports(
        data["name"], members, _read_port(data["input"]), reads, writes, tuple(data["drops"]), span, data["batch"], data["macs"],
        data["precision"],
    )  # fmt: skip
    return Stage(ports, data["program"], data["ticket"], {name: tuple(shape) for name, shape in data["scattered"].items()})


def _manifest(data: Mapping[str, Any]) -> Manifest:
    policy = None if data["policy"] is None else Policy.from_json(json.dumps(data["policy"]))
    given = _read_port(data["input"])
    assert given is not None
    found = Manifest(
        data["name"], given, tuple(_read_stage(stage) for stage in data["stages"]), data["kind"], data["combine"], policy,
        Golden(**data["golden"]), tuple(File(**file) for file in data["files"]), data["card"],
        None if data["classes"] is None else tuple(data["classes"]), data["preprocessing"], data["costs"], data["watch"],
        data["precision"], data["provenance"],
    )  # fmt: skip
    check(found)
    return found
