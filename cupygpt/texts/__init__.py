"""From text to token files: built-in texts, text files, and what is held out of them."""
