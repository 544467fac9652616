"""The web console at `/console`: pages for people, made on the server, over the services that REST calls too.

    browser ──cookie──► gate (session, origin, CSRF token) ──► routes ──► control's services
                                                                 └──────► guest (envd, by the sandbox's route)

Owns log-ins, pages and what the browser is allowed to do with them. What a sandbox sends reaches a browser as text in
a page, as bytes that a script reads, or as a download; never as a document, script or style of the console's origin.
"""

from atoll.console.app import Console

__all__ = ["Console"]
