"""`kg app`: a page in the browser over the engine, on this machine only (extra `app`, gradio).

The page and its server hold no files: images travel inside the requests, prompts may name uploaded images by number
only, and neither the page nor its API can name a path of this machine.
"""
