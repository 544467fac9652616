"""The numbers of a sandbox's own network; the same as in the namespaces tier, so that programs see no difference."""

LOOPBACK_ADDRESS = "10.0.2.15"
"""Beside 127.0.0.1 on `lo`: the source address of what goes out."""

NAMESERVER = "10.0.2.3"
"""Where resolv.conf points: any address that is not the sandbox's own; the redirect catches it."""

EGRESS_TCP_PORT = 15001
EGRESS_DNS_PORT = 15053
