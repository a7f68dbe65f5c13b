"""POST /v1/messages, the form of Anthropic's clients, over the core of chat."""
