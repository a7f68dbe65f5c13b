"""A model's text taken apart into reasoning, content and tool calls, as it arrives."""
