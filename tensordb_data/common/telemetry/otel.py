"""The counters of this process as metrics of OpenTelemetry, through its API: the program brings SDK and exporter."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tensordb_data.common.telemetry.measures import OWN, collect
from tensordb_data.errors import MissingExtraError

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

VARIABLE = "TENSORDB_OTEL"
_lock = threading.Lock()
_on: set[int] = set()  # the providers that were given, by `id()`; they are never dropped
_kept: list[Any] = []


def enable(provider: MeterProvider | None = None) -> None:
    """Offer what this process counts to OpenTelemetry. A second call does nothing.

    Nothing is measured anew: the instruments are asked when an exporter reads them. Without an SDK they do nothing.

    Args:
        provider: Where to register the instruments; None for that of the program.

    Raises:
        MissingExtraError: opentelemetry-api is not installed.
    """
    try:
        from opentelemetry import metrics
    except ImportError:
        raise MissingExtraError("OpenTelemetry is not installed: pip install 'tensordb-data[otel]'") from None
    with _lock:
        if id(provider) in _on:
            return
        _on.add(id(provider))
        meter = metrics.get_meter("tensordb_data", meter_provider=provider)
        for name, measure in OWN.items():
            make = meter.create_observable_counter
            _kept.append(make(name, [_asked(name)], unit=measure.unit, description=measure.about))
        _kept.append(provider)


def enable_if_asked() -> None:
    """Do so if `$TENSORDB_OTEL` is 1.

    Raises:
        MissingExtraError: As for `enable`.
    """
    if os.environ.get(VARIABLE) == "1" and id(None) not in _on:
        enable()


def _asked(name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def ask(options: CallbackOptions) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        return [Observation(each.number, dict(each.labels)) for each in collect() if each.name == name]

    return ask
