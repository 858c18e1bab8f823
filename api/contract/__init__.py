"""OpenAPI, AsyncAPI and the pages that draw them."""
