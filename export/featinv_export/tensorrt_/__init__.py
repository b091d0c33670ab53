"""TensorRT plans of an engine's ONNX graphs: options, builder, caches.

Checked against the vendor's Python bindings of TensorRT 10.16 and 11.4 and a double made from them; not yet run on a
GPU.
"""
