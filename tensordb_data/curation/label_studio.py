"""The JSON of Label Studio: tasks that it imports, and annotations that it exports."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.common.html import Report
from tensordb_data.errors import QueryError, SchemaError, StorageError
from tensordb_data.export.rows import blob_names, check_data, fields_of, read_rows
from tensordb_data.samples.annotate import annotate
from tensordb_data.schema import Image, Text

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.context import Warehouse

_ID, _DATASET = "tensordb_id", "tensordb_dataset"
_SINGLE = ("number", "rating", "datetime")
_LISTS = ("choices", "taxonomy", "textarea")
_BYTES = 2 << 30
"""Of a file with annotations, at most."""


@dataclass(frozen=True)
class ImportedAnnotations(Report):
    """What `db.data.import_label_studio` did."""

    changed: int
    """Samples that got values."""
    unknown: tuple[ObjectId, ...]
    """The ids that no sample of this project has."""
    open: int
    """Tasks that nobody has annotated, or whose annotations were all skipped."""
    conflicts: tuple[ObjectId, ...]
    """Samples whose annotations differ. They got those of the newest."""
    foreign: int
    """Tasks that are not of this library: they do not name a sample."""


# Out


def write_tasks(
    bound: BoundQuery, path: str | os.PathLike[str], fields: Sequence[str], predictions: Mapping[str, str] | None
) -> int:
    """See `Selection.to_label_studio`."""
    check_data(bound, "Label Studio")
    if isinstance(fields, str) or not fields:
        raise QueryError(f'fields= are the fields that a person sees, such as ["image"]; found {fields!r:.80}')
    labels = dict(predictions or {})
    known = fields_of(bound, list(dict.fromkeys([*fields, *labels])))
    blobs = blob_names(known)
    for name in fields:
        if name in blobs and not isinstance(known[name], (Image, Text)):
            raise QueryError(f"field {name!r}: Label Studio shows images, texts and values; found {known[name]!r}")
    for name in labels:
        if name in blobs:
            raise QueryError(f"predictions=: {name!r} is a blob, and a prediction is a value")
        if labels[name] not in fields:
            raise QueryError(f"predictions=: {name!r} is a prediction of {labels[name]!r}, which fields= does not name")
    target = Path(path)
    count = 0
    try:
        with open(target, "x", encoding="utf-8") as file:
            file.write("[")
            for task in _tasks(bound, fields, known, labels):
                file.write(",\n" if count else "\n")
                json.dump(task, file, ensure_ascii=False, allow_nan=False, default=str)
                count += 1
            file.write("\n]\n")
    except FileExistsError:
        raise StorageError(f"{target} exists already; give another name") from None
    except ValueError as error:
        target.unlink()
        raise SchemaError(f"a value cannot be written as JSON: {error}") from None
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error}") from error
    except BaseException:
        target.unlink()
        raise
    return count


def _tasks(
    bound: BoundQuery, fields: Sequence[str], known: Mapping[str, Any], labels: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    blobs = [name for name in fields if name in blob_names(known)]
    for run in read_rows(bound, blobs):
        for row in run:
            doc = row.sample
            data = {name: doc.get(name) for name in fields if name not in blobs}
            for name in blobs:
                data[name] = _shown(known[name], bytes(row.blobs[name])) if name in row.blobs else None
            task: dict[str, Any] = {"data": {**data, _ID: str(doc["_id"]), _DATASET: doc["dataset"]}}
            results = [_choice(name, to, doc[name]) for name, to in labels.items() if doc.get(name) is not None]
            if results:
                task["predictions"] = [{"model_version": "tensordb", "result": results}]
            yield task


def _choice(name: str, to: str, value: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": "choices", "value": {"choices": [str(value)]}}


def _shown(field: Any, content: bytes) -> str:
    if isinstance(field, Text):
        return content.decode()
    return f"data:{_media(content)};base64,{base64.b64encode(content).decode()}"


def _media(content: bytes) -> str:
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return "image/png"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return "image/gif" if content[:4] == b"GIF8" else "image/bmp" if content[:2] == b"BM" else "image/jpeg"


# In


def import_annotations(
    warehouse: Warehouse,
    path: str | os.PathLike[str],
    fields: Mapping[str, str] | None,
    values: Mapping[str, Mapping[str, Any]] | None,
    source: str,
) -> ImportedAnnotations:
    """See `Data.import_label_studio`."""
    chosen: dict[str, dict[ObjectId, dict[str, Any]]] = {}
    stored = _Stored(warehouse, values or {})
    conflicts: list[ObjectId] = []
    left = foreign = 0
    for place, task in enumerate(_read(Path(path))):
        id = _sample(task)
        if id is None:
            foreign += 1
            continue
        done = sorted(filter(_counts, _list(task.get("annotations"))), key=_when)
        if not done:
            left += 1
            continue
        found = [_values(place, annotation, fields) for annotation in done]
        if any(one != found[-1] for one in found):
            conflicts.append(id)
        by = _who(done[-1])
        if found[-1]:
            for others in chosen.values():
                others.pop(id, None)  # of an earlier task of the same sample
            given = {name: stored.value(place, name, value) for name, value in found[-1].items()}
            chosen.setdefault(source if by is None else f"{source}:{by}", {})[id] = given
    changed = 0
    unknown: list[ObjectId] = []
    for who, of in chosen.items():
        annotated = annotate(warehouse, of, who)
        changed += annotated.changed
        unknown += annotated.unknown
    return ImportedAnnotations(changed, tuple(unknown), left, tuple(conflicts), foreign)


class _Stored:
    """How choices are stored: Label Studio knows texts only."""

    def __init__(self, warehouse: Warehouse, values: Mapping[str, Mapping[str, Any]]) -> None:
        self._values = values
        schemas = warehouse.datasets.schemas(sorted(warehouse.datasets.versions(None)))
        self._kinds: dict[str, set[str]] = {}
        for schema in schemas.values():
            for name, field in schema.items():
                self._kinds.setdefault(name, set()).add(getattr(field, "kind", ""))

    def value(self, place: int, name: str, value: Any) -> Any:
        """The value of a field, by what was chosen."""
        if name in self._values and isinstance(value, (str, list)):
            known = self._values[name]
            many = [value] if isinstance(value, str) else value
            if not all(isinstance(each, str) and each in known for each in many):
                raise SchemaError(
                    f"task {place}: {value!r:.80} in {name!r} is not among the values= of it, {', '.join(known)}"
                )
            return known[value] if isinstance(value, str) else [known[each] for each in many]
        if isinstance(value, str) and self._kinds.get(name) == {"int"}:
            try:
                return int(value)
            except ValueError:
                raise SchemaError(
                    f"task {place}: {name!r} holds integers, found {value!r:.80}: say what it stands for,"
                    f" values={{{name!r}: {{{value!r:.80}: 0, ...}}}}"
                ) from None
        return value


def _read(path: Path) -> list[Any]:
    try:
        if path.stat().st_size > _BYTES:
            raise StorageError(f"{path} has more than 2 GiB: export fewer tasks at once")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, list):
        raise SchemaError(
            f"{path}: expected what Label Studio exports as JSON, a list of tasks; found a {type(found).__name__}"
        )
    return found


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _sample(task: Any) -> ObjectId | None:
    data = task.get("data") if isinstance(task, Mapping) else None
    id = data.get(_ID) if isinstance(data, Mapping) else None
    return ObjectId(id) if isinstance(id, str) and ObjectId.is_valid(id) else None


def _counts(annotation: Any) -> bool:
    return isinstance(annotation, Mapping) and not annotation.get("was_cancelled") and bool(annotation.get("result"))


def _when(annotation: Mapping[str, Any]) -> str:
    return str(annotation.get("updated_at") or annotation.get("created_at") or "")


def _who(annotation: Mapping[str, Any]) -> str | None:
    by = annotation.get("completed_by")
    by = by.get("id") if isinstance(by, Mapping) else by
    return str(by) if isinstance(by, int) and not isinstance(by, bool) else None


def _values(place: int, annotation: Mapping[str, Any], fields: Mapping[str, str] | None) -> dict[str, Any]:
    """The value of each field, by what a person has chosen, written, rated or drawn."""
    found: dict[str, Any] = {}
    for result in _list(annotation.get("result")):
        name = result.get("from_name") if isinstance(result, Mapping) else None
        if not isinstance(name, str):
            continue  # a relation between regions
        if fields is not None and name not in fields:
            continue
        kind, value = result.get("type"), result.get("value")
        if not isinstance(kind, str) or not isinstance(value, Mapping):
            raise SchemaError(f"task {place}: the result {name!r} has no type or value; it is not of Label Studio")
        field = name if fields is None else fields[name]
        if kind in _SINGLE and kind in value:
            found[field] = value[kind]
        elif kind in _LISTS:
            chosen = value.get("text" if kind == "textarea" else kind)
            chosen = [chosen] if isinstance(chosen, str) else _list(chosen)
            found[field] = chosen[0] if len(chosen) == 1 else chosen
        else:  # a region: a box, a polygon, a span of text
            regions = found.setdefault(field, [])
            size = {key: result[key] for key in ("original_width", "original_height") if key in result}
            if not isinstance(regions, list):
                raise SchemaError(f"task {place}: {name!r} is both a choice and a region")
            regions.append({**value, **size})
    return found
