"""The topics: names, what each may hold, who writes and who reads.

==========================  =============  ==========================  ==============================
topic                       key            written by                  read by
==========================  =============  ==========================  ==============================
requests                    request id     api, projections            progress, projections, api
image-requests              image id       api, progress               compress
image-results               request id     compress                    progress, projections
output-requests             request id     progress                    projections
webhooks                    request id     projections                 progress, projections
dead-letters                none           every reader                people
progress-…-changelog        request id     progress                    progress, api (status view)
==========================  =============  ==========================  ==============================

Every topic keyed by request id has the same number of partitions, so that one progress worker sees all
that happens to a request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

KEEP_FOREVER: Mapping[str, str] = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
LATEST_BY_KEY: Mapping[str, str] = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.2"}

PROGRESS_TABLE = "requests"


@dataclass(frozen=True)
class Topics:
    """Topic and consumer-group names under one prefix."""

    prefix: str = "shrinkstream"
    requests: str = field(init=False)
    image_requests: str = field(init=False)
    image_results: str = field(init=False)
    output_requests: str = field(init=False)
    webhooks: str = field(init=False)
    dead_letters: str = field(init=False)
    progress_changelog: str = field(init=False)

    def __post_init__(self) -> None:
        for name in (
            "requests",
            "image_requests",
            "image_results",
            "output_requests",
            "webhooks",
            "dead_letters",
        ):
            object.__setattr__(self, name, f"{self.prefix}.{name.replace('_', '-')}")
        # Faust's own rule: <app id>-<table name>-changelog
        object.__setattr__(self, "progress_changelog", f"{self.group('progress')}-{PROGRESS_TABLE}-changelog")

    def group(self, app: str) -> str:
        """The consumer group, which is also the Faust app id, of ``compress``, ``progress`` or ``projections``."""
        return f"{self.prefix}-{app}"

    def configs(self) -> dict[str, Mapping[str, str]]:
        """Every topic that ``init`` creates, with its settings."""
        kept = (
            self.requests,
            self.image_requests,
            self.image_results,
            self.output_requests,
            self.webhooks,
            self.dead_letters,
        )
        return {**dict.fromkeys(kept, KEEP_FOREVER), self.progress_changelog: LATEST_BY_KEY}
