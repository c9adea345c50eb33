"""Metrics of this process, for OpenTelemetry: `tensordb_data.metrics.enable()`. See docs/metrics.md."""

from tensordb_data.common.telemetry.measures import MEASURES, Measure, Value, collect
from tensordb_data.common.telemetry.otel import enable

__all__ = ["MEASURES", "Measure", "Value", "collect", "enable"]
