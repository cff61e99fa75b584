"""`GET /metrics`: figures of the node in Prometheus' text form, for the operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sandgate.api.dependencies import Operator, Served, Services
from sandgate.api.routing import new_router

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

router = new_router("node", (401, 403))


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}},
)
async def metrics(served: Served, _: Operator) -> Response:
    """Figures of the node. Counters begin anew with the control process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(served))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE)


@dataclass(frozen=True, slots=True)
class _Figures:
    """All figures at this moment, as prometheus_client wants them."""

    served: Services

    def collect(self) -> Iterator[Metric]:
        hub, node = self.served.decisions, self.served.node
        totals = hub.totals
        decisions = CounterMetricFamily(
            "sandgate_decisions", "Decisions on traffic.", labels=("verdict", "reason")
        )
        for (allowed, reason), count in sorted(totals.decisions.items()):
            decisions.add_metric(("allow" if allowed else "deny", reason), count)
        yield decisions
        sent = CounterMetricFamily(
            "sandgate_bytes", "Bytes of connections and flows that ended.", labels=("direction",)
        )
        sent.add_metric(("sent",), totals.sent)
        sent.add_metric(("received",), totals.received)
        yield sent
        sandboxes = GaugeMetricFamily("sandgate_sandboxes", "Live sandboxes.", labels=("state",))
        for state, count in sorted(node.states().items()):
            sandboxes.add_metric((state,), count)
        yield sandboxes
        connections = GaugeMetricFamily(
            "sandgate_connections",
            "Connections and flows under way, by the process that watches them.",
            labels=("source",),
        )
        for source, gauges in sorted(totals.gauges.items()):
            connections.add_metric((source,), gauges.get("connections", 0))
        yield connections
        recorder = totals.gauges.get("recorder", {})
        for name, text, value in (
            ("decisions_reported", "Decisions that report mode let pass.", totals.reported),
            (
                "decisions_suppressed",
                "Decisions that came too fast to be recorded.",
                totals.unrecorded,
            ),
            ("decision_rows_unsaved", "Sums that could not be written down.", totals.unsaved),
            ("decision_batches_malformed", "Datagrams not understood.", totals.malformed),
            (
                "kernel_events_lost",
                "Packets or bursts of events that the kernel could not hand over.",
                recorder.get("lost", 0),
            ),
            (
                "kernel_events_unattributed",
                "Kernel events of no known sandbox.",
                recorder.get("unattributed", 0),
            ),
            ("tail_events_missed", "Decisions that live readers were too slow for.", totals.missed),
            ("dns_queries", "DNS queries of sandboxes.", totals.dns_queries),
        ):
            yield CounterMetricFamily(f"sandgate_{name}", text, value=value)
        yield GaugeMetricFamily("sandgate_tails", "Live readers of decisions.", value=hub.tails)
