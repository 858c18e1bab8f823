"""Each of Faust's traps against a real broker: with its guard, and with Faust's own code in its place."""
