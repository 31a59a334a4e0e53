"""A loaded model behind HTTP, with the image routes of OpenAI's API.

`worker` generates for many callers in turn, `form` reads uploads, `images` turns the parameters of a call into
requests and their images into a response, `server` speaks HTTP.
"""
