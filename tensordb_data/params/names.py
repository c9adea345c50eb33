"""Match the names of saved parameters with those of a model: through wrappers, below a prefix, and renamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tensordb_data.errors import StateError

Renames = Mapping[str, str] | Sequence[tuple[str, str]]
"""Beginnings of names: as they were saved, and as the model has them."""

_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""What DataParallel and DDP, `torch.compile`, FSDP and activation checkpointing put into names."""
_SHOWN = 5  # names in a message


def plain(name: str) -> str:
    """A name without the parts that wrappers of a model add to it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def match_names(own: Iterable[str], saved: Iterable[str]) -> dict[str, str]:
    """Find the saved name for each name of a model: the same, or the same without wrappers if only one is so.

    Returns:
        The saved names by the names of the model, in its order. A name without a partner is not in it.
    """
    own, saved = list(own), list(saved)
    there = set(saved)
    found = {name: name for name in own if name in there}
    left = [name for name in saved if name not in found]
    if left and len(found) < len(own):
        alone = [name for name in own if name not in found]
        once = {name for name, n in Counter(map(plain, alone)).items() if n == 1}
        once &= {name for name, n in Counter(map(plain, left)).items() if n == 1}
        by_plain = {plain(name): name for name in left}
        found.update({name: by_plain[plain(name)] for name in alone if plain(name) in once})
    return {name: found[name] for name in own if name in found}


def choose(names: Iterable[str], prefix: str, rename: Renames, label: str) -> dict[str, str]:
    """Choose the saved names below a prefix, and rename them.

    Args:
        names: The saved names.
        prefix: What a chosen name begins with. It is taken away.
        rename: Then, what the rest begins with, and what takes its place. Of a mapping the longest that fits counts, of
            pairs the first.
        label: The set in words.

    Returns:
        The saved name by the new name.

    Raises:
        StateError: Nothing has the prefix, a rename fits nothing, or two names become one.
    """
    names = list(names)
    pairs = sorted(rename.items(), key=lambda pair: -len(pair[0])) if isinstance(rename, Mapping) else list(rename)
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise StateError(f"rename= has pairs of texts, what a name begins with and what takes its place; {pair!r}")
    found: dict[str, str] = {}
    used = set()
    for name in names:
        new = next((one for one in (name, plain(name)) if one.startswith(prefix)), None)
        if new is None:
            continue
        new = new[len(prefix) :]
        for old, to in pairs:
            if new.startswith(old):
                used.add(old)
                new = to + new[len(old) :]
                break
        if new in found:
            raise StateError(f"{label}: {found[new]} and {name} would both become {new}: change prefix= or rename=")
        found[new] = name
    if prefix and not found:
        raise StateError(f"{label} has no name that begins with {prefix!r}; it has {_some(names)}")
    if unused := [old for old, _ in pairs if old not in used]:
        rest = [name.removeprefix(prefix) for name in found.values()]
        raise StateError(f"rename=: no name begins with {unused[0]!r}; there are {_some(rest)}")
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "") if names else "none"
