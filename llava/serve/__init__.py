"""The server: OpenAI's API over HTTP. It knows requests, keys and limits, not tensors."""
