"""Views of rendered objects with their exact rotations: a procedural stand-in for 3DIEBench, with no download."""

from seqjepa.data.objects.collection import RenderedObjects
from seqjepa.data.objects.render import Camera

__all__ = ["Camera", "RenderedObjects"]
