"""Changes of samples: tags, and fields that are values in the index. The answer has what undoes them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import QueryError, StateError
from tensordb_data.schema import Scalar
from tensordb_data.ui.parts.asked import fields_of
from tensordb_data.ui.parts.filters import as_json, from_json
from tensordb_data.ui.parts.links import id_of, parsed
from tensordb_data.ui.shown import brief, grouped

if TYPE_CHECKING:
    from starlette.responses import Response

    from tensordb_data.api.selection import Selection
    from tensordb_data.samples.sample import Sample
    from tensordb_data.ui.view import View

_MOST_IDS = 10_000
_UNDO = 1_000
_ACTIONS = ("tag", "untag", "set", "unset")
_ABSENT = "absent"


def edit(view: View) -> Response:
    """`./edit`: tag, untag, or set a field of some samples, or of all that match.

    The body has `action`; `tags`, or `field` with `value` (JSON) or `text` (as somebody has typed it); and `ids`, or
    `all` with `dataset`, `q` and the `count` that was shown.

    Raises:
        QueryError: The body is malformed.
        SchemaError: The value does not fit the field.
        StateError: Another number of samples matches than was shown.
    """
    body = view.body
    action = body.get("action")
    if action not in _ACTIONS:
        raise QueryError(f"action is one of {', '.join(_ACTIONS)}; found {action!r:.100}")
    selection, few = _selected(view)
    if action in ("tag", "untag"):
        tags = body.get("tags")
        if not isinstance(tags, list) or not tags:
            raise QueryError(f"tags is a list of texts; found {tags!r:.100}")
        undo = _tags_before(selection, action, tags) if few else []
        changed = selection.tag(*tags) if action == "tag" else selection.untag(*tags)
        what = f"{'tagged' if action == 'tag' else 'without the tag'} {', '.join(brief(tag) for tag in tags)}"
    else:
        field = _field(view, body.get("field"), selection)
        value = None if action == "unset" else _value(body, field[1])
        undo = _values_before(selection, field[0]) if few else []
        update = {"$unset": {field[0]: ""}} if value is None else {"$set": {field[0]: value}}
        changed = selection.update(update)
        what = f"{field[0]} = {brief(value)}" if value is not None else f"without {field[0]}"
    said = f"{grouped(changed)} {'sample' if changed == 1 else 'samples'} changed: {what}"
    return view.data({"said": said, "changed": changed, "undo": undo})


def _selected(view: View) -> tuple[Selection[Sample], bool]:
    """What is to be changed, and whether it is few enough to be undone."""
    every = view.body.get("all")
    if isinstance(every, Mapping):
        dataset, q, shown = every.get("dataset"), every.get("q", ""), every.get("count")
        if not isinstance(q, str) or not isinstance(dataset, (str, type(None))):
            raise QueryError("all has `dataset` and `q`, as texts, and `count`")
        filter = parsed(q)
        if dataset:
            filter = {"$and": [{"dataset": dataset}, filter]} if filter else {"dataset": dataset}
        selection = view.writing.data.find(filter)
        found = selection.count()
        if found != shown:
            raise StateError(f"{grouped(found)} samples match now, and {shown!r:.20} were shown: count them again")
        if not filter:
            raise QueryError("to change all samples of all datasets, use the library: update(..., all=True)")
        return selection, found <= _UNDO
    ids = view.body.get("ids")
    if not isinstance(ids, list) or not 0 < len(ids) <= _MOST_IDS:
        raise QueryError(f"ids is a list of 1 to {_MOST_IDS:,} ids")
    return view.writing.data.find({"_id": {"$in": [id_of(str(each), "sample") for each in ids]}}), len(ids) <= _UNDO


def _field(view: View, name: Any, selection: Selection[Sample]) -> tuple[str, Scalar]:
    """The field that is to be set, with its kind."""
    dataset = next(iter(selection.distinct("dataset")), None)
    if dataset is None:
        raise QueryError("none of these samples exists any more")
    found = fields_of(view, dataset).get(name) if isinstance(name, str) else None
    if not isinstance(found, Scalar):  # of several datasets, the update itself looks at the others
        raise QueryError(f"dataset {dataset!r} has no field {name!r:.100} that can be set here")
    return name, found


def _value(body: Mapping[str, Any], kind: Scalar) -> Any:
    if "text" not in body:
        return from_json(body.get("value"))
    text = body["text"]
    if not isinstance(text, str):
        raise QueryError(f"text is what somebody has typed; found {text!r:.100}")
    if kind.kind == "str":
        return text
    if not text.strip():
        return None
    if kind.kind == "datetime":
        try:
            return dt.datetime.fromisoformat(text.strip().removesuffix("Z"))
        except ValueError:
            return text  # the schema says what is wrong
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _tags_before(selection: Selection[Sample], action: str, tags: list[Any]) -> list[dict[str, Any]]:
    """The changes that undo one of tags: for each tag, of the samples that it changes."""
    opposite = "untag" if action == "tag" else "tag"
    own = [(sample.id, sample.tags) for sample in _lean(selection, "tags")]
    found = []
    for tag in tags:
        ids = [str(id) for id, there in own if (tag in there) == (action == "untag")]
        if ids:
            found.append({"action": opposite, "tags": [tag], "ids": ids})
    return found


def _values_before(selection: Selection[Sample], field: str) -> list[dict[str, Any]]:
    """The changes that undo one of a field: for each value that there was, of the samples that had it."""
    groups: dict[str, dict[str, Any]] = {}
    for sample in _lean(selection, field):
        there = sample.get(field)
        key = _ABSENT if there is None else json.dumps([type(there).__name__, as_json(there)])
        action = {"action": "unset"} if there is None else {"action": "set", "value": as_json(there)}
        groups.setdefault(key, {**action, "field": field, "ids": []})["ids"].append(str(sample.id))
    return list(groups.values())


def _lean(selection: Selection[Sample], field: str) -> Selection[Sample]:
    return selection & selection.query.replace(fields=[field])
