"""How good is a model: its losses on texts, and the questions that it answers."""
