"""How documents become tokens, and tokens files."""
