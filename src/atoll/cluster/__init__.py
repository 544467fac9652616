"""Machines that Ray knows, as nodes of a control plane: the extra `atoll[ray]`.

    control plane's machine                    each machine of the Ray cluster
    server/cluster.py ── members ──Ray──► NodeAgent actor ──keeps alive──► atoll node serve
           │ PUT /nodes/{id}                                                    ▲
           ▼                                                                    │
         front ─────────────── wire/node over mutual TLS ──────────────────────┘

Ray carries membership, liveness and certificates, and nothing else: no sandbox, no request and no byte of a sandbox
passes through it. Without Ray the agents go on, and so does everything that the control plane knows already.
"""
