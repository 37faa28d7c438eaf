"""Bundles: a trained ensemble and its policy as a folder that runs anywhere, safely and fast, without PyTorch.

:func:`load_bundle` checks one and gives a :class:`Runtime`; :func:`write_bundle` writes programs from anywhere, ``quorate.save_bundle``
PyTorch ensembles. Tickets run on kernels that skip dead weights, which :func:`tune_bundle` fits to the machine.
"""

from __future__ import annotations

from quorate.runtime.engines import Engine
from quorate.runtime.loading import load_bundle
from quorate.runtime.manifest import BundleError, Manifest, schema
from quorate.runtime.program import Port, Ports, Program, Sparse
from quorate.runtime.runtime import Runtime
from quorate.runtime.session import OnnxStage
from quorate.runtime.tuned import tune_bundle
from quorate.runtime.writing import write_bundle

__all__ = [
    "BundleError", "Engine", "Manifest", "OnnxStage", "Port", "Ports", "Program", "Runtime", "Sparse", "load_bundle", "schema",
    "tune_bundle", "write_bundle",
]  # fmt: skip
