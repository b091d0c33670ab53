"""What can run an engine: torch and onnxruntime."""
