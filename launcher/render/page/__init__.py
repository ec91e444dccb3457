"""The plan as one HTML page that needs nothing but itself: no network, no script."""

from launcher.render.page.document import GENERATOR, render_page

__all__ = ["GENERATOR", "render_page"]
