"""The whole recipe at a tiny scale: train, distil, export, invert; better than without training, and repeatable."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featinv_fast.checkpoints import load, load_base
from featinv_fast.cli import _parser  # the commands are tested through a parser of their own
from featinv_fast.commands import train as command
from featinv_fast.errors import ConfigError
from featinv_fast.features import Backbone, normalise
from featinv_fast.runtime import Runtime
from featinv_fast.train import read_recipe, run
from featinv_fast.train.logs import read_log
