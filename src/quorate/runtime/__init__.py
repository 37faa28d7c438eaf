"""Bundles: a trained ensemble and its policy as a folder that runs anywhere, safely and fast, without PyTorch.

:func:`load_bundle` checks one and gives a :class:`Runtime`; :func:`write_bundle` writes programs from anywhere, ``quorate.save_bundle``
PyTorch ensembles.
"""

from __future__ import annotations

from quorate.runtime.loading import load_bundle
from quorate.runtime.manifest import BundleError, Manifest, schema
from quorate.runtime.program import Port, Ports, Program, Sparse
from quorate.runtime.runtime import Runtime
from quorate.runtime.session import OnnxStage
from quorate.runtime.writing import write_bundle

__all__ = [
    "BundleError", "Manifest", "OnnxStage", "Port", "Ports", "Program", "Runtime", "Sparse", "load_bundle", "schema", "write_bundle",
]  # fmt: skip
