"""What a run will do, before it begins: data, model, memory, length, and all that was left open."""
