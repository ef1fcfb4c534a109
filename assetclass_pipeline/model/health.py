"""Whether the pipeline is well: the answer, part by part.

Belongs here: what every surface shows. Does not: asking (monitoring/health.py).
"""

from typing import Annotated

from pydantic import PlainSerializer

from assetclass_pipeline.model.wire import Moment, WireModel

Milliseconds = Annotated[
    float, PlainSerializer(lambda value: round(value, 1), return_type=float, when_used="json")
]


class Component(WireModel):
    """One part of the pipeline: whether it is well, in one sentence, and how long that took."""

    is_healthy: bool
    message: str
    latency_ms: Milliseconds


class Health(WireModel):
    """All parts at one moment; well only if every one is."""

    is_healthy: bool
    checked_at: Moment
    components: dict[str, Component]

    @property
    def failing(self) -> dict[str, Component]:
        """The parts that are not well."""
        return {name: part for name, part in self.components.items() if not part.is_healthy}
