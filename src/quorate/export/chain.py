"""The stages that are put together: from one ensemble or several, programs and ONNX files among them, in a policy's order and names.

Names are those of :func:`quorate.cascade.plan`: in ``{name: source}`` a source of one stage is called ``name``, the stages of others
``name/stage``; without a mapping stages keep their own, and neighbours that a policy has as one, ``a+b``, are merged. Stages that
depend on each other stay what they were: each gets what the very stage wrote that writes it in its ensemble, and what nobody reads
any more is not written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from quorate.cost.counting import evaluating
from quorate.ensemble import WrappedStage, stages
from quorate.ensemble.members import kind_of
from quorate.ensemble.staging import stage_modules
from quorate.export import eager
from quorate.export.eager import Answer, Array
from quorate.export.exporting import program
from quorate.export.tickets import whole_weights, without_sparse
from quorate.runtime.members import onnx_member
from quorate.runtime.program import Port, Program
from quorate.runtime.session import OnnxStage, open_session
from quorate.tickets.ensemble import TicketStage

WHOLE = ("name", "reads", "writes", "drops")
MOST = 8  # rows of the example that are used


@dataclass(frozen=True, eq=False)
class Link:
    """One stage of the pool.

    Attributes:
        name: in the policy.
        stage: a module by the contract of stages, or a program.
        macs: per row, where they are known already.
        source: "" where there is no mapping; what it carries is called ``source/…`` else.
        kind, combine: what its ensemble declares; None where nothing does.
    """

    name: str
    stage: Any
    macs: float | None = None
    source: str = ""
    kind: str | None = None
    combine: str | None = None

    def carried(self, key: str) -> str:
        """The name of a carried array among all sources."""
        return f"{self.source}/{key}" if self.source else key

    def keys(self, what: str) -> tuple[str, ...]:
        """Its own names of what it reads, writes or drops."""
        return tuple(getattr(self.stage.ports if isinstance(self.stage, Program) else self.stage, what))


def programs(
    ensemble: Any,
    example: Any,
    *,
    names: Sequence[str] | None = None,
    sparse: bool = True,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    progress: Callable[[str], None] | None = None,
) -> list[Program]:
    """The stages as programs; the modules stay as they are.

    Args:
        ensemble: an ensemble, stages, or several sources, as :func:`links` takes them.
        example: raw inputs (B, *shape), of which the first 8 rows are used.
        names: of the stages that are wanted, in order, such as a policy's; None for all.
        sparse: whether tickets leave their sparse weights outside.
        rtol, atol: how far a program may be from its stage.
        progress: is told in a word or two what begins.

    Raises:
        ValueError: no rows, stages that are not there or don't keep the contract, and as :func:`quorate.export.exporting.program`.
    """
    pool = links(ensemble, names, example)
    parts = pool if names is None else chosen(pool, names)
    return built(parts, example, rtol=rtol, atol=atol, sparse=sparse, progress=progress)[0]


def links(given: Any, wanted: Sequence[str] | None = None, example: Any = None) -> list[Link]:
    """Every stage of what is given.

    Args:
        given: an ensemble; a sequence of stages: modules by their contract, wrapped ones, programs, paths of ONNX files; or a dict
            from names to
            ensembles, networks and whatever can be a stage.
        wanted: the policy's names. Where one is of neighbours of an ensemble, ``a+b``, these are merged.
        example: raw inputs, on which merged stages' MACs are counted.

    Raises:
        ValueError: anything else, an ONNX file that can't be a stage, two stages of one name.
    """
    if isinstance(given, nn.Module) and not _is_stage(given):
        found = _ensemble(given, getattr(given, "combine", "probs"))
        if wanted is not None and _merges(wanted, [link.name for link in found]):
            with evaluating(given):
                parts = stages(given, None if example is None else example[:1], [name.count("+") + 1 for name in wanted])
            found = [replace(found[0], name=part.name, stage=part.module, macs=part.macs) for part in parts]
    elif isinstance(given, Mapping):
        found = [link for name, source in given.items() for link in _named(name, source)]
    elif isinstance(given, Sequence) and not isinstance(given, str):
        found = [_stage(part, None) for part in given]
    else:
        found = [_stage(given, None)]
    names = [link.name for link in found]
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"stages {names}: expected at least one, each of its own name; give a dict {{name: ensemble}} to tell them apart"
        )
    return found


def chosen(pool: Sequence[Link], names: Sequence[str]) -> list[Link]:
    """Those of these names, in their order.

    Raises:
        ValueError: names that are not each of one stage, or a stage that goes on from another one than it does in its ensemble.
    """
    by_name = {link.name: link for link in pool}
    if not names or len(set(names)) != len(names):
        raise ValueError(f"names={list(names)}: expected at least one stage, each once")
    if absent := [name for name in names if name not in by_name]:
        raise ValueError(
            f"the policy has the stages {absent}, there are {list(by_name)}: name the sources as the planner's pool did, "
            "{name: ensemble}"
        )
    picked, here = [by_name[name] for name in names], _writers(pool)
    for name, writers in _writers(picked).items():
        for key, writer in writers.items():
            if writer != here[name][key]:
                raise ValueError(
                    f"stage {name!r} reads {key!r} of {here[name][key]!r}, before it in {list(names)} it is of {writer!r}: "
                    "stages that depend on each other have to come in their order and without gaps"
                )
    return picked


def built(
    parts: Sequence[Link],
    example: Any,
    *,
    rtol: float,
    atol: float,
    sparse: bool = True,
    progress: Callable[[str], None] | None = None,
) -> tuple[list[Program], Array, list[Answer]]:
    """Every stage as a program; the rows of the example (at most 8) that they were made with; what the stages give on them.

    The answers are PyTorch's where the stage is a module. Tickets leave their sparse weights outside where that saves bytes, if
    ``sparse``.

    Raises:
        ValueError: an example without rows or that a program does not take, a stage that reads what
            none before it writes, and as :func:`quorate.export.exporting.program`.
    """
    x = eager.array_of("the example", example)
    if x.ndim < 1 or not len(x):
        raise ValueError(f"the example has shape {x.shape}: expected some rows of raw input, (B, *shape)")
    for name, writers in _writers(parts).items():
        if absent := [key for key, writer in writers.items() if writer is None]:
            raise ValueError(
                f"stage {name!r} reads {absent}, which none of the stages before it writes: give these too, in their order"
            )
    x, carry = x[:MOST], dict[str, Array]()
    made, answers = list[Program](), list[Answer]()
    for k, link in enumerate(parts):
        if progress is not None:
            progress(f"stage {link.name}")
        later = {later.carried(key) for later in parts[k + 1 :] for key in later.keys("reads")}
        kept = tuple(key for key in link.keys("writes") if link.carried(key) in later)
        held = {key: carry[link.carried(key)] for key in link.keys("reads")}
        made_here, (members, written) = _built(link, x, held, kept, (rtol, atol), sparse)
        wrote = {link.carried(key): written[key] for key in kept}
        carry |= wrote
        made.append(_renamed(made_here, link))
        answers.append((members, wrote))
    return made, x, answers


def _built(
    link: Link, x: Array, held: Mapping[str, Array], kept: tuple[str, ...], allowed: tuple[float, float], sparse: bool
) -> tuple[Program, Answer]:
    stage = link.stage
    if isinstance(stage, Program):
        ports = replace(stage.ports, writes={key: stage.ports.writes[key] for key in kept})
        _check_takes(link, ports.input, x if ports.span is None else x[..., ports.span[0] : ports.span[1]])
        given = replace(stage, ports=ports)
        session = open_session(given.onnx, f"the program of stage {link.name!r}", external=whole_weights(given))
        return given, OnnxStage(session, ports)(x, held)
    module = eager.on_cpu(stage)
    macs = eager.macs(module, x[:1], {key: array[:1] for key, array in held.items()}) if link.macs is None else link.macs
    rtol, atol = allowed
    made = program(module, x, held, macs=macs, writes=kept, rtol=rtol, atol=atol)
    made = without_sparse(made) if sparse and _holds_tickets(stage) else made
    return made, eager.answer(module, x, held)


def _check_takes(link: Link, port: Port | None, x: Array) -> None:
    if port is not None and not port.fits(x):
        raise ValueError(
            f"the program of stage {link.name!r} takes {port.dtype} {port.shape} a row, the example is {x.dtype} "
            f"{x.shape[1:]}: every stage of a bundle gets the same raw input, export it for that"
        )


def _renamed(made: Program, link: Link) -> Program:
    """By its names among all sources."""
    reads, writes = ({link.carried(key): port for key, port in part.items()} for part in (made.ports.reads, made.ports.writes))
    drops = tuple(link.carried(key) for key in made.ports.drops)
    return replace(made, ports=replace(made.ports, stage=link.name, reads=reads, writes=writes, drops=drops))


def _writers(parts: Sequence[Link]) -> dict[str, dict[str, str | None]]:
    """By stage, who wrote what it reads: the name of the stage, None where nobody did."""
    held: dict[str, str] = {}
    found: dict[str, dict[str, str | None]] = {}
    for link in parts:
        found[link.name] = {key: held.get(link.carried(key)) for key in link.keys("reads")}
        held |= {link.carried(key): link.name for key in link.keys("writes")}
        for key in link.keys("drops"):
            held.pop(link.carried(key), None)
    return found


def _named(name: Any, source: Any) -> list[Link]:
    if not isinstance(name, str) or not name:
        raise ValueError(f"a source is called {name!r}: expected text")
    if not isinstance(source, nn.Module) or _is_stage(source):
        return [_stage(source, name)]
    found = _ensemble(source, getattr(source, "combine", None))
    if len(found) == 1:
        return [replace(found[0], name=name)]
    return [replace(link, name=f"{name}/{link.name}", source=name) for link in found]


def _ensemble(ensemble: nn.Module, combine: str | None) -> list[Link]:
    kind = kind_of(ensemble)
    return [Link(str(stage.name), stage, kind=kind, combine=combine) for stage in stage_modules(ensemble)]


def _stage(part: Any, name: str | None) -> Link:
    if isinstance(part, str | Path):
        part = onnx_member(part, name=name)
    if isinstance(part, Program):
        return Link(name or part.ports.stage, part, part.ports.macs)
    if isinstance(part, WrappedStage):
        return Link(name or part.name, part.module, part.macs)
    if isinstance(part, nn.Module) and _is_stage(part):
        return Link(name or str(part.name), part)
    raise ValueError(
        f"a {type(part).__name__} among the stages: expected stages (with {', '.join(WHOLE)}), programs or paths of ONNX files; give "
        "whole ensembles as {name: ensemble}"
    )


def _merges(wanted: Sequence[str], names: Sequence[str]) -> bool:
    """Whether these are all the stages in order, some of them as one."""
    return "+".join(wanted) == "+".join(names) and list(wanted) != list(names)


def _holds_tickets(stage: nn.Module) -> bool:
    return any(isinstance(module, TicketStage) for module in stage.modules())


def _is_stage(module: nn.Module) -> bool:
    own = getattr(module, "stages", None)
    return all(hasattr(module, key) for key in WHOLE) and (not callable(own) or isinstance(own, nn.Module))
