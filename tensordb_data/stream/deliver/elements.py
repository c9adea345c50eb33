"""Elements: the dtype and shape of what a stream delivers, by the schemas of its datasets."""

from __future__ import annotations

from tensordb_data.stream.order.lengths import sequence_fields
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.transform.collate import lengths_field

Element = tuple[str | None, tuple[int | None, ...]]
"""Dtype and shape of one sample's field."""


def elements_of(layout: FieldLayout, spec: StreamSpec) -> dict[str, Element]:
    """The dtype and shape of one sample, or of one row of packed samples, for each delivered field.

    Args:
        layout: The fields.
        spec: Of a stream without a transform.
    """
    layout = layout.delivered(spec.views, spec.fields)
    pack = None if spec.tokens is None else spec.tokens.pack
    packed = set() if pack is None else set(sequence_fields(layout))
    found: dict[str, Element] = {}
    for name in layout.fields:
        elements = {s[name].element for s in layout.schemas.values() if name in s}
        dtype, shape = elements.pop() if len(elements) == 1 else (None, None)
        if name in packed:
            found[name] = (dtype, (pack,))
            found[f"{name}_segments"] = found[f"{name}_positions"] = ("int32", (pack,))
            continue
        found[name] = (None, ()) if shape is None else (dtype, shape)
        if spec.ragged == "pad" and shape is not None and None in shape:
            found[lengths_field(name)] = ("int64", () if len(shape) == 1 else (len(shape),))
    return found if pack is None else {**found, "cu_seqlens": ("int32", ())}
