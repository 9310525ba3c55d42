"""What /metrics tells (Prometheus): requests, tokens, times, caches, queues and memory."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llava.engine.request import Usage
from llava.serve.pool import ModelPool

_FIRST = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds
_BETWEEN = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The figures of one server."""

    def __init__(self, pool: ModelPool) -> None:
        self.registry = CollectorRegistry()
        name, where = "llava_requests", self.registry
        self.requests = Counter(name, "Requests that ended, by HTTP status.", ["path", "status"], registry=where)
        self.cancelled = Counter(
            "llava_cancelled", "Requests cut short: their client left, time ran out, or they failed.", registry=where
        )
        self.prompt = Counter("llava_prompt_tokens", "Tokens of prompts.", ["model"], registry=where)
        self.answer = Counter("llava_answer_tokens", "Tokens of answers.", ["model"], registry=where)
        self.reused = Counter(
            "llava_reused_tokens", "Tokens of prompts whose keys and values were there.", ["model"], registry=where
        )
        self.images = Counter(
            "llava_images",
            "Pictures that were encoded, or whose tokens were there.",
            ["model", "cache"],
            registry=where,
        )
        self.first = Histogram(
            "llava_first_token_seconds", "From a request to its first token.", ["model"], registry=where, buckets=_FIRST
        )
        self.between = Histogram(
            "llava_between_tokens_seconds", "Between tokens of an answer.", ["model"], registry=where, buckets=_BETWEEN
        )
        self.speed = Histogram(
            "llava_answer_tokens_per_second",
            "Tokens a second of an answer, from its first to its last.",
            ["model"],
            registry=where,
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
        )
        where.register(_State(pool))

    def took(self, model: str, usage: Usage) -> None:
        """Count what an answer took."""
        self.prompt.labels(model).inc(usage.prompt_tokens)
        self.answer.labels(model).inc(usage.answer_tokens)
        self.reused.labels(model).inc(usage.reused_tokens)
        self.images.labels(model, "miss").inc(usage.encoded_images)
        self.images.labels(model, "hit").inc(usage.reused_images)

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self.registry)


class _State(Collector):
    """What is read off when it is asked for."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """The queues and memory of each loaded model, and of the process."""
        names = {
            "waiting": "Requests that wait.",
            "running": "Requests that run: the batch.",
            "blocks": "Blocks of keys and values that running requests have.",
            "kept_blocks": "Blocks that finished requests left for later ones.",
            "all_blocks": "Blocks in all.",
        }
        for name, help_text in names.items():
            family = GaugeMetricFamily(f"llava_{name}", help_text, labels=["model"])
            for place, served in list(self._pool.loaded.items()):
                family.add_metric([place], getattr(served.engine.load, name))
            yield family
        loaded = sum(served.bytes for served in list(self._pool.loaded.values()))
        yield GaugeMetricFamily("llava_models_bytes", "Memory set aside for loaded models.", value=loaded)
        yield GaugeMetricFamily("llava_resident_bytes", "Memory of the process.", value=resident_bytes())


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the platform does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * 4096 if statm.exists() else 0
