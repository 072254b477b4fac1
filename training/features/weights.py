"""Weights that are put into a folder by hand: read as tensors and nothing else, never downloaded."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from training.contract import UserError


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """A state dict.

    Args:
        what: which weights are wanted and who has them, for the messages.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UserError(f"there is no {path.name} in {path.parent}, and weights are never downloaded; put {what} there under that name")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} holds no weights that can be read; put {what} there") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path} holds no state dict of tensors; put {what} there")
    return found


def check_fits(found: dict[str, Tensor], expected: dict[str, Tensor], path: Path, what: str) -> None:
    """Refuse weights of another network.

    Raises:
        UserError: a tensor is missing or has another shape; the message names the first.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise UserError(f"{path} holds the weights of another network: {name} is missing; put {what} there")
        if found[name].shape != tensor.shape:
            shapes = f"{name} is {tuple(found[name].shape)} and {tuple(tensor.shape)} is wanted"
            raise UserError(f"{path} holds the weights of another network: {shapes}; put {what} there")
