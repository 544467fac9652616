"""How control and a node speak: commands (`NodeClient`) and facts (`NodeEvents`, routes) as messages with a version.

    node → control   hello{version, node_id, status, tiers, routes}  first, once per connection
                     beat{status}                                    every second
    control → node   call{id, call, args}    cancel{id}    ack{seq}
    node → control   ok{id, ok} or error{id, error} (+descriptor for `dial`)
                     event{seq, event, args}   until it is acknowledged, over a new connection again
                     route{route}   unroute{sandbox_id}   tiers{tiers}

A message is one JSON object (`wire.channel`). Over a Unix socket it is one packet, and the answer to `dial` carries the
connected socket itself. To another machine it goes over TLS with certificates on both sides, and a dialled port is a
second connection that the node relays.

The order within a connection is kept: a sandbox's route is there before the answer to its create.
"""

VERSION = 4
"""Of the messages. Sides of different versions refuse each other early."""
