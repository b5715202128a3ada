"""A local page, made with Gradio, where both networks of a run classify a dropped image.

The page is for one machine: it is bound to the loopback interface, and its browser may load nothing from elsewhere.
"""

from adjoined.demo.answers import LARGEST_FILE, PICTURES, Answer, DemoNetwork, Picture, look, open_image, pictures
from adjoined.demo.gradio_page import page
from adjoined.demo.serving import require, serve

__all__ = [
    "LARGEST_FILE",
    "PICTURES",
    "Answer",
    "DemoNetwork",
    "Picture",
    "look",
    "open_image",
    "page",
    "pictures",
    "require",
    "serve",
]
