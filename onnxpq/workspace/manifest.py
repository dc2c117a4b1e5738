"""What a result was made from: hashes of model and data, settings and seed, versions, machine.

With the same inputs, settings and versions a run gives the same file on the same machine. A manifest is a dictionary of
plain values, as JSON holds them.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from onnxpq.config import Config
from onnxpq.data import Dataset, calls_of
from onnxpq.graph import files
from onnxpq.runtime import Libraries
from onnxpq.support import fingerprint

FORMAT: Final = 1
"""Version of the manifest and of what lies beside it in a work folder."""

PACKAGES: Final = ("onnxpq", "torch", "onnxruntime", "onnx", "onnx-ir", "numpy")
INFORMATION: Final = frozenset(
    f"{source}.{key}" for source in ("model", "data", "test") for key in ("file", "bytes", "folder")
)
"""What says more of a run but does not tell it from another: a file may be moved."""

MACHINE: Final = "machine"
"""Likewise: a run may go on on another machine."""

_SHOWN_DIGITS = 12


def describe(
    model: Mapping[str, Any],
    data: Mapping[str, Any] | None,
    test: Mapping[str, Any] | None,
    *,
    labels: str | None,
    config: Config,
    device: str,
    libraries: Libraries = (),
) -> dict[str, Any]:
    """The manifest of a run.

    Args:
        model: from `of_model`.
        data: from `of_data`, of what is trained on; None without data.
        test: from `of_data`, of what it is verified on; None where that is a part of the data.
        labels: key of the labels.
        config: all settings; its seed decides every random choice.
        device: what torch computes on, in words.
        libraries: custom-operator libraries that the model needs.
    """
    made_from = {
        "format": FORMAT,
        "model": dict(model),
        "data": data,
        "test": test,
        "labels": labels,
        "settings": config.to_dict(),
        "libraries": {os.path.basename(path): fingerprint.of_file(path) for path in libraries},
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version(), "onnxpq source": _source_digest()},
        MACHINE: {
            "system": f"{platform.system()} {platform.machine()}",
            "torch": device,
        },
    }
    # As a file gives it back: tuples become lists.
    found: dict[str, Any] = json.loads(json.dumps(made_from))
    return found


def of_model(source: files.Source, model: ir.Model) -> dict[str, Any]:
    """A model's hash: that of its file, or of what it computes where it was passed in memory.

    Args:
        source: as the user gave it.
        model: as it was loaded.
    """
    if not isinstance(source, str | PathLike):
        return {"sha256": fingerprint.digest(fingerprint.model_parts(model))}
    found = _of_file(source)
    external = {os.path.basename(path): fingerprint.of_file(path) for path in files.files_of(source)[1:]}
    return found | ({"external data": external} if external else {})


def of_data(source: object, *datasets: Dataset) -> dict[str, Any]:
    """The hash of a data file or of a folder of them, or of the arrays where they were passed in memory.

    Args:
        source: as the user gave it.
        datasets: what it was read into, all parts.
    """
    if isinstance(source, str | PathLike):
        if not os.path.isdir(source):
            return _of_file(source)
        calls = calls_of(source)
        hashes = (f"{path.name} {fingerprint.of_file(path)}".encode() for path in calls)
        return {"folder": os.fspath(source), "files": len(calls), "sha256": fingerprint.digest(hashes)}
    return {"sha256": fingerprint.digest(part for dataset in datasets for part in _dataset_parts(dataset))}


def identity(made_from: Mapping[str, Any]) -> str:
    """The hash of all that tells a run from another."""
    return hashlib.sha256(json.dumps(_flat(made_from), sort_keys=True).encode()).hexdigest()


def changes(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What tells two runs from each other, each as a phrase "X was A and is B now"; empty for the same run."""
    before, after = _flat(begun), _flat(now)
    names = dict.fromkeys([*before, *after])
    return [
        f"{name} was {_shown(before.get(name))} and is {_shown(after.get(name))} now"
        for name in names
        if before.get(name) != after.get(name)
    ]


def remarks(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences for a run that goes on although something differs that may show in its last digits."""
    before, after = begun.get(MACHINE), now.get(MACHINE)
    if before == after:
        return []
    return [
        f"The run was begun on another machine or with other threads ({_shown(before)}; now {_shown(after)}): its "
        "result may differ in the last digits from one made in one go."
    ]


def _of_file(path: str | PathLike[str]) -> dict[str, Any]:
    return {"file": os.fspath(path), "bytes": os.path.getsize(path), "sha256": fingerprint.of_file(path)}


def _dataset_parts(dataset: Dataset) -> Iterator[bytes]:
    for name, array in dataset.inputs.items():
        yield from fingerprint.array_parts(name, array)
    if dataset.labels is not None:
        yield from fingerprint.array_parts("labels", dataset.labels)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names, without those that are information only."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name == MACHINE or name in INFORMATION:
            continue
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    is_hash = isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2
    return text[1 : 1 + _SHOWN_DIGITS] if is_hash else text


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _source_digest() -> str:
    """The hash of the Python files of onnxpq itself: two checkouts may carry the same version."""
    folder = Path(__file__).parent
    files = sorted(folder.rglob("*.py"))
    return fingerprint.digest(part for path in files for part in (path.name.encode(), path.read_bytes()))
