"""The processes of one `atoll serve`, by rights.

    launcher   holds the data directory, the sockets and the keys; starts the others, again if need be; serves nobody
    node       makes sandboxes: root where there is root. Hears only the front (`wire.node`), no stranger
    front      edge and control plane, what strangers speak to: a user of its own without any capability, a root
               directory of its own, a system call filter, limited memory

Each may be killed at any moment and is started again alone; sandboxes and their commands go on. When the launcher
ends, the others end at once, and the next server adopts what lives.
"""
