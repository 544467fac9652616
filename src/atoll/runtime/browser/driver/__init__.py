"""The browser's driver: runs inside the sandbox, holds one Chromium and does BrowserGym's actions on it.

Shipped by the runtime as a zip of these modules; standard library only (Pillow, where there is one, draws the set of
marks). It speaks Chromium's DevTools protocol over a pipe, so no port is open that a page could talk to.

    runtime ──► `act` (one short process per action) ──► socket ──► `serve` ──pipe──► Chromium
"""
