"""The processes of one `atoll serve`, by rights.

    launcher   holds the data directory, the sockets and the keys; starts the others, again if need be; serves nobody
    node       makes sandboxes: root where there is root. Accepts only the front (`wire.node`), no stranger
    front      edge and control plane, what strangers speak to: a user of its own without any capability, a root
               directory of its own, a system call filter, limited memory
    egress     the gateway, what sandboxes speak to: as the front, a user and a root of its own, and it begins as a
               program that has never had the server's keys in its memory. Accepts only the node (`wire.egress`)

Each may be killed at any moment and is started again alone; sandboxes and their commands go on. When the launcher
ends, the others end at once, and the next server adopts what lives.
"""
