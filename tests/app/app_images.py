"""Images as the page sends them."""

import base64
import io

from PIL import Image, ImageDraw


def png(colour="orange", size=(24, 16)):
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((2, 2, size[0] - 3, size[1] - 3), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def item(colour="orange", name="cat.png", **more):
    return {"name": name, "data": base64.b64encode(png(colour)).decode(), **more}
