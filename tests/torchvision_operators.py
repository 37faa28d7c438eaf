"""Where torchvision was built for another PyTorch, its two missing operators are declared, so that it can be imported.

They serve object detection alone; without them torchvision, and all that imports it if it is there, can't be imported.
"""

from __future__ import annotations

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    OPERATORS = torch.library.Library("torchvision", "DEF")  # a name: they last as long as it does
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
