"""A local page, made with Gradio, where both networks of a run classify a dropped image.

The page is for one machine: it is bound to the loopback interface, and its browser may load nothing from elsewhere.
"""

from adjoined.demo.gradio_page import DemoNetwork, page
from adjoined.demo.images import Picture, pictures
from adjoined.demo.serving import require, serve

__all__ = ["DemoNetwork", "Picture", "page", "pictures", "require", "serve"]
