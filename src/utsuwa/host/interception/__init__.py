"""Interception of system calls: what the kernel refuses to a container is done for it, within limits.

A rule with the action `notify` in a container's seccomp policy stops the caller and notifies liblxc's
monitor, which forwards each call over a unix socket and waits for the answer, one call at a time:

    caller ──seccomp──> liblxc's monitor ──SOCK_SEQPACKET──> a worker of the helper

`listener` is the daemon's side: it accepts the connection of each monitor and hands it to a worker of the
helper, which serves it until the container ends, also while the daemon is away. So each guest has a process
of its own, and can only delay itself. If that is killed, the call fails with ENOSYS, and the monitor connects
again for the next one.

`support` is for the daemon, too. All other modules run in the worker, and so are quick to import (see
`helper`).

**Rules for handlers.** Whatever is not allowed is answered with `CONTINUE`: the kernel then judges the call
as if it had not been intercepted, with the caller's own rights, so it does not matter what the caller changes
meanwhile. What is allowed is done with copies of the arguments and the caller's credentials, and a privilege
is added only after a check of the same objects, by descriptor. Descriptors are opened below the caller's
directory in /proc, which never refers to another process, and before any effect the kernel is asked if the
call still waits.
"""
