"""A plan of which every part of the fingerprint can be changed alone."""

from __future__ import annotations

from typing import Any

from toys import coded, tiny_backbone

from cl_bench import Experience, LabelSpace, Method, Scenario, TensorData, TestSet
from cl_bench.engine.protocol import Plan


class Plain(Scenario):
    """A stream whose every fact can be changed."""

    test_batch_size = 8

    def __init__(self, light: int = 0, **facts: Any) -> None:
        self.light, self.facts = light, {"data": "d", "split": "domains"}
        for name, value in facts.items():
            setattr(self, name, value)

    @property
    def source(self) -> Experience | None:
        data = coded(8)
        return Experience("source", LabelSpace((0, 1, 2, 3)), TensorData(data.x + self.light, data.y))

    def stream(self) -> list[TestSet]:
        return [TestSet("a", LabelSpace((0, 1, 2, 3)), coded(8))]

    def protocol(self) -> dict[str, Any]:
        return self.facts


def plan(scenario: Scenario | None = None, label: str = "plain", network: str = "tiny", **changes: Any) -> Plan:
    backbone = changes.pop("backbone", None) or tiny_backbone()
    backbone.info.update(changes.pop("info", {}))
    names = {"scenario": {"name": label}, "method": {"name": "m", "label": "m"}, "backbone": {"name": network}}
    return Plan(scenario or Plain(), backbone, Method, Method, names, **changes)
