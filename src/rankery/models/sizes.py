"""How large a model would be, before memory is asked for: an absurd number in a configuration is one sentence, not a full machine.

Contract: the configuration's own numbers are looked at first (a list of 10**9 layer names is made while it is read), then the model
is built without memory, on torch's meta device, counting modules and elements as they come; both are compared with what the headers of
the weight files hold. Bounds are wide (16 times, for weights packed in 4 bits), since transformers compares shapes one by one
afterwards. Cost: milliseconds to a second. Rejected: a table of the sizes that each family may have.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from threading import get_ident
from typing import Any

from rankery.errors import InputError

COUNTED = (
    "num_",
    "n_",
    "layer",
    "head",
    "expert",
    "label",
    "group",
    "block",
)  # in names of what a model has so many of
UNCOUNTED = ("position", "ctx", "embed", "vocab", "token", "size", "dim", "_id")
MOST_COUNTED = 100_000
PACKED = 16  # elements of a model to one in its files, at most: 4-bit weights in 32-bit integers, and as much again
SLACK = 100_000_000  # elements: heads and poolers that a base's files lack, tiny models
MODULES = 50_000  # that a model may have; 1,000 layers of a mixture of experts have fewer
MOST_HEADER = 100_000_000  # bytes, as safetensors itself has it


def _check_numbers(name: str, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_numbers(name, value)
        if not isinstance(value, int) or not any(part in key for part in COUNTED):
            continue
        if value > MOST_COUNTED and not any(part in key for part in UNCOUNTED):
            raise InputError(
                f"{name}: config.json says {key} is {value!r:.80}, which no model has; restore the file as saved"
            )


def check_size(name: str, build: Callable[[], Any]) -> None:
    """Builds a local model without memory and compares its size with that of its safetensors.

    Args:
        name: folder; nothing is checked where it is none, or holds no weights.
        build: makes the model, by its configuration.

    Raises:
        InputError: the model would be far larger than what its files hold; a file that is not whole.
    """
    import torch

    held = _elements_held(Path(name))
    if held is None:
        return
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            with _counted(PACKED * held + SLACK, f"{name}: config.json describes a model", held):
                build()
        except InputError:
            raise
        except Exception:  # what else is wrong with it, loading says
            return


def check_config_file(name: str) -> None:
    """The numbers of a local config.json, which are read before transformers sees them.

    Raises:
        InputError: it is no JSON object, or has a number that no model has.
    """
    file = Path(name) / "config.json"
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: is no JSON ({str(error)[:80]}); restore the file as saved") from None
    if not isinstance(config, dict):
        raise InputError(
            f"{file}: holds a {type(config).__name__}; expected a model's configuration: restore the file as saved"
        )
    _check_numbers(name, config)


def _elements_held(folder: Path) -> int | None:
    """Elements of a local folder's weights, of pickled ones at most; None where it has none.

    Raises:
        InputError: a file that is not whole.
    """
    if files := sorted(folder.glob("*.safetensors")):
        return sum(prod(shape) for file in files for shape in tensor_shapes(file).values())
    files = sorted(folder.glob("pytorch_model*.bin"))
    for file in files:
        with file.open("rb") as opened:
            if opened.read(4)[:1] not in (b"P", b"\x80"):  # a zip, or a bare pickle
                raise InputError(damaged(file, "it is no file of torch"))
    return sum(file.stat().st_size for file in files) if files else None


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Shapes of the tensors of a safetensors file by name, from its header alone.

    Raises:
        InputError: the file is not whole, or no safetensors.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(size - 8, MOST_HEADER):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        shapes = {key: [int(n) for n in entry["shape"]] for key, entry in header.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end != size:
            raise ValueError(f"{size:,} bytes, its header says {end:,}")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        struct.error,
    ) as error:
        raise InputError(damaged(file, str(error) or type(error).__name__)) from None
    return shapes


def damaged(file: Path, problem: str) -> str:
    """What is said of weights that cannot be read; of a pointer that Git LFS left in their place, how to get them."""
    try:
        with file.open("rb") as opened:
            start = opened.read(40)
    except OSError:
        start = b""
    if start.startswith(b"version https://git-lfs"):
        return f"{file}: is a pointer of Git LFS, not the weights; get them with: git lfs pull"
    return f"{file}: holds no readable weights ({problem[:200]}); restore the file, or download it again"


@contextmanager
def _counted(most: int, what: str, held: int) -> Iterator[None]:
    """Stops building as soon as there are too many modules, or elements in parameters and buffers."""
    from torch.nn.modules.module import (
        register_module_buffer_registration_hook,
        register_module_module_registration_hook,
        register_module_parameter_registration_hook,
    )

    elements, modules, own = 0, 0, get_ident()

    def add_tensor(_module: Any, _name: str, tensor: Any) -> None:
        nonlocal elements
        if get_ident() != own:  # the hooks are of the whole process: another thread builds a model of its own
            return
        elements += 0 if tensor is None else tensor.numel()
        if elements > most:
            raise InputError(
                f"{what} of more than {elements:,} weights, but its files hold {held:,}; restore the file as saved"
            )

    def add_module(_module: Any, _name: str, _child: Any) -> None:
        nonlocal modules
        if get_ident() != own:
            return
        modules += 1
        if modules > MODULES:
            raise InputError(
                f"{what} of more than {MODULES:,} parts, but its files hold {held:,} weights; restore the file as saved"
            )

    hooks = [
        register_module_parameter_registration_hook(add_tensor),
        register_module_buffer_registration_hook(add_tensor),
        register_module_module_registration_hook(add_module),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
