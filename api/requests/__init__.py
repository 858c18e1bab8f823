"""Routes about requests, their images, webhooks and products."""
