"""The vendor's Python bindings without the vendor's libraries: three stub libraries let them be imported.

The bindings link libnvinfer, libnvinfer_plugin and libnvonnxparser and take nine functions from them. The stubs have
these nine and return null, so classes, enums and signatures are the real ones and nothing can be built.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import separate_packages

RELEASES = ("10.16", "11.4")
HERE = Path(__file__).parent

STUB = """\
#define NULL_POINTER ((void*)0)
void* createInferBuilder_INTERNAL(void* logger, int version) { return NULL_POINTER; }
void* createInferRefitter_INTERNAL(void* engine, void* logger, int version) { return NULL_POINTER; }
void* createInferRuntime_INTERNAL(void* logger, int version) { return NULL_POINTER; }
void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void* logger, int version) { return NULL_POINTER; }
void* createNvOnnxParser_INTERNAL(void* network, void* logger, int version) { return NULL_POINTER; }
void* getBuilderPluginRegistry(int capability) { return NULL_POINTER; }
void* getPluginRegistry(void) { return NULL_POINTER; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void* logger, const char* name) { return 0; }
"""


def missing() -> str | None:
    """Why the bindings cannot be used, or `None`."""
    for release in RELEASES:
        if reason := separate_packages.missing(f"tensorrt-{release}"):
            return f"NOTHING ABOUT TENSORRT WAS CHECKED: {reason}"
    compiler = os.environ.get("CC", "cc")
    assert shutil.which(compiler), f"the stub libraries need a C compiler, and there is no {compiler}"
    return None


def run(release: str, script: str, stubs: Path) -> str:
    """What `script` prints in a process that imports the bindings of `release`."""
    major = release.partition(".")[0]
    libraries = stubs / major
    if not libraries.is_dir():
        libraries.mkdir(parents=True)
        source = libraries / "stub.c"
        source.write_text(STUB)
        for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            library = f"lib{name}.so.{major}"
            command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o"]
            subprocess.run([*command, libraries / library, source], check=True)
    environment = os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(libraries), os.environ.get("LD_LIBRARY_PATH")])),
        "PYTHONPATH": str(separate_packages.folder(f"tensorrt-{release}")),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    result = subprocess.run(
        [sys.executable, HERE / script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def describe(release: str, stubs: Path) -> dict[str, Any]:
    """The classes, enums, properties and signatures of a release."""
    description = json.loads(run(release, "describe_bindings.py", stubs))
    assert description["version"].startswith(f"{release}."), description["version"]
    return description


def describe_rtx() -> dict[str, Any]:
    """The same of TensorRT for RTX, whose own libraries load without a GPU."""
    command = [sys.executable, HERE / "describe_bindings.py", "tensorrt_rtx"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
