"""The numbers of a sandbox's own network; the same as in the namespaces tier, so that programs see no difference."""

ADDRESS = "10.0.2.15"
"""The sandbox's own, at its end of the line."""

GATEWAY = "10.0.2.14"
"""The other end: the next hop of everything."""

PREFIX = 31
"""Nothing but these two is a neighbour: all other addresses, of the nameserver too, are behind the gateway."""

NAMESERVER = "10.0.2.3"
"""Where resolv.conf points: any address that is not the sandbox's own; the redirect catches it."""

EGRESS_TCP_PORT = 15001
EGRESS_DNS_PORT = 15053
