"""Stage: actors in threads that take turns, each from one request to the server or the store to the next.

A schedule says whose turn it is. So an interleaving of real protocol steps can be written down, tried one after the
other, and repeated when it fails. An actor whose request waits for a lock that another holds has its turn ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pymongo import monitoring

_BLOCKED = 0.03  # seconds after which an actor whose turn it is counts as waiting for another's lock
_PATIENCE = 60.0
_QUIET = frozenset(("hello", "ismaster", "ping", "endSessions", "killCursors", "saslStart", "saslContinue"))

_actor = threading.local()


class Stage(monitoring.CommandListener):
    """Give it to the client as an event listener, and let the store call `point`.

    Args:
        helpers: The actors for which threads of some names work.
    """

    def __init__(self, helpers: Mapping[str, str] | None = None) -> None:
        self._helpers = helpers or {}
        self._changed = threading.Condition()
        self._turn: str | None = None
        self._state: dict[str, str] = {}
        self.played: list[tuple[str, str]] = []
        """The steps of the last run: who, and what came next."""

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name not in _QUIET:
            self.point(event.command_name)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    def point(self, what: str) -> None:
        """A step of the calling actor ends; the next one begins when it is its turn."""
        name = getattr(_actor, "name", None) or self._helpers.get(threading.current_thread().name)
        if name is None or self._state.get(name, "done") == "done":
            return
        with self._changed:
            self._state[name] = "ready"
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._turn == name)
            self._turn = None
            self._state[name] = "running"
            self.played.append((name, what))
            self._changed.notify_all()  # what comes now may wait for a lock of another, whose turn it must be then

    def run(self, actors: Mapping[str, Callable[[], Any]], schedule: Iterable[str]) -> dict[str, BaseException]:
        """Runs all of them to their ends: by the schedule while it lasts, and then in turns.

        Returns:
            What was raised, by actor.
        """
        raised: dict[str, BaseException] = {}
        self.played = []
        self._state = dict.fromkeys(actors, "running")

        def play(name: str, act: Callable[[], Any]) -> None:
            _actor.name = name
            try:
                self.point("begins")
                act()
            except BaseException as error:
                raised[name] = error
            finally:
                with self._changed:
                    self._state[name] = "done"
                    self._changed.notify_all()

        threads = [threading.Thread(target=play, args=item, daemon=True) for item in actors.items()]
        for thread in threads:
            thread.start()
        wishes, names, last = iter(schedule), list(actors), 0
        with self._changed:
            while any(state != "done" for state in self._state.values()):
                if not self._changed.wait_for(lambda: "ready" in self._state.values() or self._over(), _PATIENCE):
                    raise AssertionError(f"nobody can go on: {self._state}, after {self.played}")
                if self._over():
                    break
                wish = next(wishes, None)
                if wish is None or self._state.get(wish) != "ready":
                    if wish is not None and self._state.get(wish) == "done":
                        continue
                    last += 1
                    turns = names[last % len(names) :] + names[: last % len(names)]
                    wish = next(name for name in turns if self._state[name] == "ready")
                self._give_turn(wish)
        for thread in threads:
            thread.join()
        return raised

    def _give_turn(self, name: str) -> None:
        self._turn = name
        self._changed.notify_all()
        self._changed.wait_for(lambda: self._turn is None, _PATIENCE)
        self._changed.wait_for(lambda: self._state[name] != "running", _BLOCKED)

    def _over(self) -> bool:
        return all(state == "done" for state in self._state.values())


def length(stage: Stage, name: str, act: Callable[[], Any]) -> int:
    """How many steps an actor has when it is alone."""
    raised = stage.run({name: act}, ())
    assert not raised, raised
    return len(stage.played)
