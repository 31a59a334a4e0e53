"""The second renderer of the nano world: 128 px images of Microsoft's Fluent Emoji in scenes with depth of field."""
