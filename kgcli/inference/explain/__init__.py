"""Which reference, and which word, shaped which region of an image: parts of a prompt, their maps, and a page."""
