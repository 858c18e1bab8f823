"""Webhooks: signed messages to receivers, by Standard Webhooks 1.0.

The log has the facts that receivers are notified of (`RequestCompleted`, `ImagesSettled`) and every delivery attempt
(`WebhookAttempted` and the others). Cassandra has a projection of them (`store`): each message with its attempts and
due time. The worker that owns a request's partition sends its messages (`dispatcher`), one attempt at a time
(`sender`), with a backoff (`schedule`). Only events change the projection: a crash or a rebuild resumes from the log.
"""
