"""The history in Cassandra: requests and images in a row each, an owner's requests and products newest first."""

from infra.cassandra.session import Session
from streams.projections.history.queries import HistoryQueries
from streams.projections.history.writer import HistoryWriter


class History(HistoryQueries, HistoryWriter):
    """Reads and writes the history."""

    def __init__(self, session: Session) -> None:
        HistoryWriter.__init__(self, session)
