"""Formats: models that describe themselves, as bytes and back. No framework is imported before its model is there."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tensordb_data.common.import_paths import Allow
from tensordb_data.errors import ArchitectureError, MissingExtraError, NotAllowedError

KERAS, TORCH, ONNX = "keras", "torch.export", "onnx"
TORCH_MODULE = "torch.export"

# Layers of Keras that load files or pickles when they are made.
_LOADERS = frozenset(("TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"))
# Where functions are that only compute: others of Keras read and write files.
_FUNCTIONS = (
    "builtins", "keras.activations", "keras.constraints", "keras.initializers", "keras.losses", "keras.metrics",
    "keras.optimizers", "keras.regularizers",
)  # fmt: skip
# Options of Keras' own layers that are values, or paths of files that the layer reads when it is made.
_FILES = ("filepath", "idf_weights", "vocabulary")
_SUFFIXES = {".onnx": ONNX, ".pt2": TORCH}


def pack(model: Any) -> tuple[str, bytes]:
    """The format of a model and its bytes.

    Raises:
        ArchitectureError: It is none of those that can be stored.
    """
    if isinstance(model, (str, Path)):
        return _pack_file(Path(model))
    keras, export, onnx = (sys.modules.get(name) for name in ("keras", "torch.export", "onnx"))
    if keras is not None and isinstance(model, keras.Model):
        return KERAS, _pack_keras(model)
    if export is not None and isinstance(model, export.ExportedProgram):
        buffer = io.BytesIO()
        export.save(model, buffer)
        return TORCH, buffer.getvalue()
    if onnx is not None and isinstance(model, onnx.ModelProto):
        return ONNX, model.SerializeToString()
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        raise ArchitectureError(
            f"a {type(model).__name__} is code and cannot be stored itself: store the function or class that makes it,"
            ' save(name, factory="mypkg.nets:cnn", kwargs={...}), or torch.export.export(model, args)'
        )
    raise ArchitectureError(
        'expected a keras.Model, a torch.export.ExportedProgram, an onnx.ModelProto or the path of an ".onnx" or'
        f' ".pt2" file, or factory="module:callable"; found a {type(model).__name__}'
    )


def unpack(format: str, data: bytes, allow: Allow, label: str) -> Any:
    """The model in `data`.

    Raises:
        NotAllowedError: It would run code that `allow` does not cover.
        ArchitectureError: It gives no model here.
        MissingExtraError: Its framework is not installed.
    """
    if format == KERAS:
        return _unpack_keras(data, allow, label)
    if format == TORCH:
        # torch says of its own format that it unpickles and may run code.
        allow.check_module(TORCH_MODULE, f"loading a torch.export program runs what is stored in it; {label}")
        return _load(lambda: _module("torch.export", "torch").load(io.BytesIO(data)).module(), label)
    if format == ONNX:
        runtime = _module("onnxruntime", "onnxruntime")
        return _load(lambda: runtime.InferenceSession(data, providers=runtime.get_available_providers()), label)
    raise ArchitectureError(f"{label} has the format {format!r}, which this version does not know; upgrade to build it")


def _pack_file(path: Path) -> tuple[str, bytes]:
    format = _SUFFIXES.get(path.suffix)
    if format is None:
        raise ArchitectureError(f"expected a file that ends with {' or '.join(_SUFFIXES)}; found {str(path)!r}")
    try:
        return format, path.read_bytes()
    except OSError as error:
        raise ArchitectureError(f"{path} cannot be read: {error.strerror}") from error


def _pack_keras(model: Any) -> bytes:
    advice = 'store the function or class that makes it instead: save(name, factory="mypkg.nets:cnn")'
    try:
        text: str = model.to_json()
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ArchitectureError(
            f"this {type(model).__name__} has no configuration that Keras can write ({_line(error)}); {advice}"
        ) from error
    for node in _nodes(json.loads(text)):
        if node.get("class_name") == "__lambda__":
            raise ArchitectureError(f"a Lambda layer holds code, which Keras in safe mode does not load; {advice}")
        if node.get("module") == "__main__":
            raise ArchitectureError(
                f"{node['class_name']} is defined in __main__, where nobody else finds it; {advice}"
            )
    return text.encode()


def _unpack_keras(data: bytes, allow: Allow, label: str) -> Any:
    keras = _module("keras", "keras")
    config = json.loads(data)
    _check_keras(config, allow, keras.saving.get_custom_objects(), label)
    with keras.saving.CustomObjectScope({}):
        return _load(lambda: keras.models.model_from_json(data.decode()), label)


def _check_keras(config: Any, allow: Allow, registered: dict[str, Any], label: str) -> None:
    """Refuses what would take code from outside of Keras and `allow`; imports what registers itself, where allowed."""
    for node in _nodes(config):
        name = node.get("class_name")
        if name == "__lambda__" or name in _LOADERS:
            raise NotAllowedError(f"{label}: {name} runs code or loads files when it is made, and Keras in safe mode"
                                  " does not build it")  # fmt: skip
        module = node.get("module")
        if module is None or module in ("keras", "builtins") or str(module).startswith("keras."):
            if (what := _reaches_out(node)) is not None:
                raise NotAllowedError(f"{label}: its {name} {what}, which a stored model may not")
            continue
        allow.check_module(str(module), f"{label}: its {name}")
        try:
            importlib.import_module(str(module))
        except ImportError as error:
            raise ArchitectureError(f"{label}: its {name} cannot be imported here: {error}") from error
    for text in _texts(config):
        home = getattr(registered.get(text), "__module__", None)
        if home is not None:
            allow.check_module(home, f"{label}: {text}")


def _reaches_out(node: dict[str, Any]) -> str | None:
    """What an object of Keras itself would do beside computing; None if it would do nothing."""
    name, config, module = node.get("class_name"), node.get("config"), node.get("module")
    if name == "function" and module is not None and module not in _FUNCTIONS:
        return f"is {config!r:.80} of {module}"
    if not isinstance(config, dict):
        return None
    function = config.get("function")
    if name == "Lambda" and not (isinstance(function, dict) and function.get("class_name") == "function"):
        return "holds code"
    return next((f"reads the file {config[key]!r:.80}" for key in _FILES if isinstance(config.get(key), str)), None)


def _nodes(config: Any) -> Iterator[dict[str, Any]]:
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _nodes(item)


def _texts(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, (dict, list)):
        for item in config.values() if isinstance(config, dict) else config:
            yield from _texts(item)


def _load(make: Callable[[], Any], label: str) -> Any:
    try:
        return make()
    except (ImportError, NotAllowedError):
        raise
    except Exception as error:  # of any kind: they come from inside a framework
        raise ArchitectureError(f"{label} gives no model here: {_line(error)}") from error


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(f"this architecture needs {package}: pip install {package}") from None


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
