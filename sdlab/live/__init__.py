"""A live run: the session that owns the tensors, what is said to it, its history and its checkpoints."""
