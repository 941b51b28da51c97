"""The helper: a small process that runs code in containers' namespaces, and the daemon's client for it.

The daemon has threads and an event loop, so it never forks into a container itself. It starts one small,
single-threaded process that loads liblxc with ctypes and keeps a number of pre-forked workers:

    daemon ── one SOCK_SEQPACKET socket ──> idle workers, the first to receive takes the request
       └──── one socketpair per request ──> that worker: replies, signals

A request is a JSON message accompanied by file descriptors, the first of which is the worker's end of the
request's socketpair. When that socket is closed (the caller gave up, or the daemon died), the worker kills
the command it runs and exits. When the daemon's end of the shared socket is closed, the idle workers and
their parent exit.

Some requests begin a session: the worker then serves a series of calls (`calls`, `mounts`) until it is
closed.

`client`, `mounting`, `replies` and `session` are the daemon's side. All other modules run in the helper
process, and so must not import anything that takes time or memory: no asyncio, no dataclasses, no other part
of Utsuwa than `host.syscalls`, `host.files.confined` and `host.interception`.
"""
