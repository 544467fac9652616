"""The way out of every sandbox: accepts what the sandbox's network namespace redirects, decides, connects, records.

    program in the sandbox ──connect(1.2.3.4:443)──► redirected to a listener in that namespace that the host holds
                                                       │ accept, SO_ORIGINAL_DST
                                                       ▼
    policy (pure) ◄── name from TLS SNI / HTTP Host (sniff, pure) and from the DNS answers given before (dns, names)
                                                       │ allowed
                                                       ▼
                                      the host connects and relays; a record is kept either way

Nothing inside the sandbox is trusted: not the address (private ones are refused), not the name (it must match an answer
that this gateway gave), not the protocol (whatever is not TCP or DNS never leaves the namespace). Who knows a sandbox's
address, or the port of the redirect, has nothing: the listener is reached from that sandbox only.
"""
