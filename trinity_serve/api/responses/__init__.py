"""POST /v1/responses, over the core of chat."""
