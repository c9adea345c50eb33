"""Which library a transform is of."""

from __future__ import annotations

from tensordb_data.errors import QueryError
from tensordb_data.stream.transform.libraries.albumentations import Albumentations, is_albumentations
from tensordb_data.stream.transform.libraries.kornia import Kornia, is_kornia
from tensordb_data.stream.transform.libraries.library import Function, Library
from tensordb_data.stream.transform.libraries.plain import Monai, Plain, is_monai
from tensordb_data.stream.transform.libraries.torchvision import TorchVision, is_torchvision
from tensordb_data.stream.transform.libraries.vision import VisionTransform


def library_of(function: Function) -> Library:
    """How a transform is called.

    Raises:
        QueryError: It cannot be applied to the samples of a stream.
    """
    if isinstance(function, VisionTransform):
        inner = function.transform
        if is_albumentations(inner) or is_monai(inner) or isinstance(inner, VisionTransform):
            raise QueryError(
                f"VisionTransform is for transforms of torchvision and Kornia; give {type(inner).__name__} itself"
            )
        return (Kornia if is_kornia(inner) else TorchVision)(inner, function.targets)
    if is_albumentations(function):
        return Albumentations(function, {})
    if is_torchvision(function):
        return TorchVision(function, {})
    if is_kornia(function):
        return Kornia(function, {})
    return (Monai if is_monai(function) else Plain)(function, {})
