"""What must run inside a container's namespaces: a small process of its own, and the daemon's side of it.

The daemon has threads and an event loop, so it never forks itself into a container. It starts one
small, single-threaded process that holds liblxc by ctypes and keeps workers forked ahead:

    daemon ── one SOCK_SEQPACKET socket ──> idle workers, whoever is first takes a request
       └───── one socketpair a request ───> that worker: replies, signals

A request is one message of JSON with file descriptors beside it, the first being the worker's end
of the request's own socketpair. When that socket closes (the caller gave up, or the daemon died) the
worker kills what it runs and ends. When the daemon's end of the shared socket closes, all that is
idle ends.

`client` is the daemon's side. All other modules run in the small process, and so import nothing
that takes time or memory: no asyncio, no dataclasses, nothing of the rest of Utsuwa.
"""
