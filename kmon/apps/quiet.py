"""Run by ``panel serve`` before it starts: what visitors do is no news, errors of the pages still are."""

import logging

for name in ("tornado.access", "bokeh.server.views.ws", "panel.io.document"):  # a wrong address, a page that was left
    logging.getLogger(name).setLevel(logging.ERROR)
