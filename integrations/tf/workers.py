"""The workers of tf.distribute: `$TF_CONFIG` says which one this process is."""

from __future__ import annotations

import json
import os

from tensordb_data.errors import QueryError


def place_in_cluster() -> tuple[int, int] | None:
    """The number of this process among the workers of its cluster, and how many they are; the chief is the first.

    Returns:
        None if there is no `$TF_CONFIG`, or this process is no worker, or the only one.

    Raises:
        QueryError: `$TF_CONFIG` is malformed.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
        task, cluster = config.get("task") or {}, config.get("cluster") or {}
        chiefs = len(cluster.get("chief") or cluster.get("master") or ())
        world = chiefs + len(cluster.get("worker") or ())
        kind, index = task.get("type"), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise QueryError(
            f"$TF_CONFIG is not the JSON of a cluster and a task ({error}): unset it, or give rank= and world_size="
        ) from error
    if kind not in ("chief", "master", "worker") or world < 2:
        return None
    rank = index + (chiefs if kind == "worker" else 0)
    if not 0 <= rank < world:
        raise QueryError(f"$TF_CONFIG has a task {kind} {index}, and its cluster has {world} workers with the chief")
    return rank, world
