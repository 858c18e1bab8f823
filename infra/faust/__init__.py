"""Guards that make Faust deliver at least once; the only package that depends on Faust's internals.

Faust as published loses and repeats events in ways that its documentation does not mention. Each guard
replaces one of its parts; the docstring names the trap, its place in Faust's source and the upstream issue. For each
numbered trap, F1 to F6, F9 and Z1 to Z4, a test with a real broker (``tests/integration/faust_guards``) fails without
the guard. Together they guarantee:

* an offset is committed only when every event before it is finished and all writes of these are acknowledged;
* an unrecoverable fault (an exception that leaves an agent, a write that the brokers refuse, an event that
  Faust itself drops) ends the process at once with exit code 70; the event is redelivered;
* a clean stop and a rebalance drain the in-flight events, with a deadline, and commit the finished ones;
* a worker that was away, and has a successor, changes nothing of the table that the successor wrote (Z1 to Z4).

The guards reach into Faust's internals, so its version is pinned and checked. The app carries them with it:
``faust -A streams.compress worker`` is as safe as ``run_worker``.
"""
