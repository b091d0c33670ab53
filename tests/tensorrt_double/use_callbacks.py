"""Run in a process with TensorRT's real bindings: our subclasses of its classes are made and called through them."""

from __future__ import annotations

import sys

import tensorrt_bindings

sys.modules["tensorrt"] = tensorrt_bindings

from featinv_export.tensorrt_.monitor import make_monitor  # noqa: E402
from featinv_fast.backends.tensorrt_plan import Messages  # noqa: E402

messages = Messages()
assert isinstance(messages.sink, tensorrt_bindings.ILogger)
messages.sink.log(tensorrt_bindings.ILogger.Severity.ERROR, "it broke")
messages.sink.log(tensorrt_bindings.ILogger.Severity.VERBOSE, "a word")
assert messages.take() == "it broke"

lines: list[str] = []
monitor = make_monitor(tensorrt_bindings, lines.append)
assert isinstance(monitor, tensorrt_bindings.IProgressMonitor)
monitor.phase_start("Building", None, 2)
assert monitor.step_complete("Building", 0) is True
assert lines == ["Building 0/2", "Building 1/2"]

# A misspelt property of theirs would be refused, and not made.
for cls in (tensorrt_bindings.IBuilderConfig, tensorrt_bindings.Runtime):
    assert cls.__dictoffset__ == 0

# What their constructors and null entry points do: the arguments are accepted, the library is not there.
for make in (tensorrt_bindings.Builder, tensorrt_bindings.Runtime):
    try:
        make(messages.sink)
    except TypeError as error:
        assert "factory function returned nullptr" in str(error)  # noqa: PT017
    else:
        raise AssertionError("the stubs return null")
sys.stdout.write("done\n")
