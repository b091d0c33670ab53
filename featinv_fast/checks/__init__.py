"""Checks of what users name and pass, before any work: values, paths, and what the system says of files. No torch."""

from featinv_fast.checks.names import (
    require_checkpoint,
    require_feature_file,
    require_layout_name,
    require_picture_name,
)
from featinv_fast.checks.packages import require_matplotlib
from featinv_fast.checks.paths import (
    as_path,
    file_errors,
    output_folder,
    refuse_existing,
    refuse_inputs,
    require_input,
    require_writable,
)
from featinv_fast.checks.system_errors import file_error
from featinv_fast.checks.values import choice, count, did_you_mean, finite, integer

__all__ = [
    "as_path",
    "choice",
    "count",
    "did_you_mean",
    "file_error",
    "file_errors",
    "finite",
    "integer",
    "output_folder",
    "refuse_existing",
    "refuse_inputs",
    "require_checkpoint",
    "require_feature_file",
    "require_input",
    "require_layout_name",
    "require_matplotlib",
    "require_picture_name",
    "require_writable",
]
