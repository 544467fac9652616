"""How a node and the egress gateway speak: packets over a Unix socket (`wire.channel`), with a version.

    gateway → node   hello{version}                                    first, once per connection
    node → gateway   attach{sandbox_id}, network (+two descriptors, or none: those that the gateway has)
                     detach{sandbox_id}
                     authority{certificate, key}                       before the first policy that needs it
                     only[sandbox_id, …]                               what is not named is detached
                     id, update{sandbox_id}, network                   id, connections{sandbox_id}
    gateway → node   id, ok or id, error                               answers to what has an id

The node says what is to be; the gateway holds no state of its own that the node could not give it again. A gateway that
was started again gets every sandbox anew; one that sees another node keeps what it has, until the new node says `only`.
"""

VERSION = 1
"""Of the messages. Both processes are of one server, so of one version."""
