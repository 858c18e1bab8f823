"""The domain model of a request: life cycle, tallies, reactions, reconciliation. Pure: no I/O and no clock."""
