"""Rederive: units that differ in the base alone → made of the earlier ones' files, by actors without a recogniser."""

import logging
from typing import Any

from jobs.cluster import Cluster
from jobs.progress import Progress
from jobs.workspace import Workspace
from pipelines.flow import Flow
from pipelines.rederive import Deriver, NotDerivable
from pipelines.storage import open_storage
from pipelines.units import Plan, Unit

logger = logging.getLogger(__name__)


class _DerivingActor:
    """A Deriver on a worker."""

    def __init__(self, flow: Flow, corpus: str) -> None:
        self._deriver = Deriver(flow)
        self._corpus = open_storage(corpus)

    def derive(self, unit: Unit, earlier: Unit) -> str | None:
        """Commit the unit; or why it must be made from its recordings."""
        try:
            self._deriver.derive(unit, earlier, self._corpus)
        except NotDerivable as error:
            return str(error)
        return None


def rederive(planned: Plan, flow: Flow, workspace: Workspace, cluster: Cluster, progress: Progress) -> set[str]:
    """Commit what can be derived of the units to do; their ids. The others are left to the whole flow."""
    pairs = [(unit, planned.earlier[unit.unit_id]) for unit in planned.to_do if unit.unit_id in planned.earlier]
    if not pairs:
        return set()
    cluster.start()
    import ray
    from ray.util import ActorPool

    gpus = max(stage.resources.gpus for stage in flow.stages)
    actor: Any = ray.remote(_DerivingActor).options(
        num_cpus=1, num_gpus=gpus or None, max_restarts=-1, max_task_retries=3
    )
    pool = ActorPool([actor.remote(flow, workspace.corpus_place) for _ in range(min(cluster.workers, len(pairs)))])
    derived: set[str] = set()

    def derive(worker: Any, pair: tuple[Unit, Unit]) -> Any:
        return worker.derive.remote(*pair)

    with progress.bar("derive") as bar:
        bar.update(0, len(pairs), "")
        for done, ((unit, _), why_not) in enumerate(zip(pairs, pool.map(derive, pairs), strict=True), start=1):
            if why_not is None:
                derived.add(unit.unit_id)
            else:
                logger.info("voice %s, unit %s is made from its recordings: %s", unit.voice, unit.unit_id, why_not)
            bar.update(done, len(pairs), f"{len(derived)} units from stored audio")
    return derived
