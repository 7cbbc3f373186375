"""A live run: the session that owns the tensors, its commands and events, its history and its checkpoints."""
