"""A program, ONNX, as layers that have kernels and parts that ONNX Runtime runs: read, understood node by node, fused, cut."""
