"""Lets libraries be imported that import torchvision for images that nobody has here."""

import sys
from types import ModuleType

import torch


def tolerate_torchvision() -> None:
    """Before such an import: torchvision's wheels fit torch's CUDA builds alone.

    Beside a CPU build they lack their compiled operators and fail on import, where the operators' shape functions are registered.
    """
    if torch.version.cuda is None:
        sys.modules["torchvision._meta_registrations"] = ModuleType("nothing to register")
