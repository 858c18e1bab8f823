"""Webhooks: messages to receivers, in the way of Standard Webhooks 1.0.

The log says what is to be told (`RequestCompleted`) and what came of it (`WebhookAttempted` and the others). Cassandra
holds a projection of that (`store`): each message with its attempts, and when which is due. The worker that owns a
request's partition sends its messages (`dispatcher`), one attempt at a time (`sender`), by a schedule (`schedule`).
Each attempt is an event, and only events change the projection: a worker that dies anywhere, or a rebuild, goes
on with what the log says.
"""
