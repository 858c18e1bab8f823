"""The topics: names, keys, writers and readers, configuration.

==========================  =============  ==========================  ====================================
topic                       key            written by                  read by
==========================  =============  ==========================  ====================================
requests                    request id     api, progress, projections  progress, projections, compress, api
image-requests              image id       api, progress               compress
image-results               request id     compress                    progress, projections
output-requests             request id     progress                    projections
webhooks                    request id     projections, api            progress, projections
progress                    request id     progress, projections       progress, projections
maintenance                 request id     replay, progress            progress, replay
dead-letters                none           every reader                people
progress-…-changelog        request id     progress                    progress, api (status view)
==========================  =============  ==========================  ====================================

Every topic keyed by request id has the same number of partitions, so that one progress worker gets all events of a
request. The number must not change, because a key's partition depends on it. Only image-requests may have more:
`init --partitions` grows it.
"""

from collections.abc import Mapping

KEEP_FOREVER: Mapping[str, str] = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
# Without daily segments, a topic with little traffic would keep its records much longer.
KEEP_A_WEEK: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "retention.ms": str(7 * 24 * 60 * 60 * 1000),
    "segment.ms": str(24 * 60 * 60 * 1000),
}
# Kafka compacts only closed segments. By default they have 1 GB or a week, and a restart would read them all.
LATEST_BY_KEY: Mapping[str, str] = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.2",
    "segment.bytes": str(64 * 1024 * 1024),
    "segment.ms": str(10 * 60 * 1000),
    "delete.retention.ms": str(60 * 60 * 1000),
}

PROGRESS_TABLE = "requests"


class Topics:
    """Topic and consumer-group names under one prefix."""

    def __init__(self, prefix: str = "shrinkstream") -> None:
        self.prefix = prefix
        self.requests = f"{prefix}.requests"
        self.image_requests = f"{prefix}.image-requests"
        self.image_results = f"{prefix}.image-results"
        self.output_requests = f"{prefix}.output-requests"
        self.webhooks = f"{prefix}.webhooks"
        self.progress = f"{prefix}.progress"
        self.maintenance = f"{prefix}.maintenance"
        self.dead_letters = f"{prefix}.dead-letters"
        # Faust's own rule: <app id>-<table name>-changelog
        self.progress_changelog = f"{self.group('progress')}-{PROGRESS_TABLE}-changelog"

    @property
    def of_progress(self) -> tuple[str, ...]:
        """The topics that the progress table is folded from."""
        return (self.requests, self.image_results, self.webhooks, self.progress)

    @property
    def of_projections(self) -> tuple[str, ...]:
        """The topics that the agents of projections read."""
        return (*self.of_progress, self.output_requests)

    @property
    def keyed_by_request(self) -> tuple[str, ...]:
        """The topics that must have the same number of partitions."""
        return (*self.of_projections, self.maintenance, self.progress_changelog)

    def group(self, app: str) -> str:
        """The consumer group, which is also the Faust app id, of ``compress``, ``progress`` or ``projections``."""
        return f"{self.prefix}-{app}"

    def configs(self) -> dict[str, Mapping[str, str]]:
        """Every topic that ``init`` creates, with its settings."""
        kept = (*self.of_progress, self.image_requests, self.output_requests, self.dead_letters)
        return {
            **dict.fromkeys(kept, KEEP_FOREVER),
            self.maintenance: KEEP_A_WEEK,
            self.progress_changelog: LATEST_BY_KEY,
        }
